"""What only a GPU can show, in one run: engines of one model per family and format, their answers, kernels and times.

    scripts/gpu_acceptance --out gpu_acceptance.json

For TensorRT, TensorRT-RTX and ONNX Runtime's CUDA provider, as far as they are here: each format is built and run on
inputs that PyTorch has answered, fused attention is counted in the builder's own report, and fp16 is timed in turn with
PyTorch eager, torch.compile and the plain export. Needs no network: weights are seeded, ranges are measured on the
packaged digits.

It ends within --seconds: a step that would not fit is skipped by a sentence. Every step has a process of its own, so
that a library that hangs or crashes costs that step only. The result is written after each. Exit code 1 if a step
failed, 0 if none did, also where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropevit_export.backends.select import BUILDERS, ENGINES
from ropevit_export.bundle import golden, manifest
from ropevit_export.bundle.draft import parity_entry
from ropevit_export.errors import with_kind
from ropevit_export.formats import EIGHT_BITS, SIXTEEN_BITS
from ropevit_export.inspect import fusion, graph, kernels
from ropevit_export.machine import hardware
from ropevit_export.machine.worker import Channel, WorkerDiedError, ask_each
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.compare import ParityReport, compare
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.pipeline import export
from ropevit_export.request import Request
from ropevit_export.runtime import load
from ropevit_export.values import Dim, Precision, Resolution
from ropevit_export.verbs import doctor
from ropevit_export.verbs.bench import bench, contenders

MODELS = ("rope_mixed_deit_small", "swin_rope_mixed_tiny", "dinov3_small")
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
ENGINE_PRECISIONS: tuple[Precision, ...] = (*SIXTEEN_BITS, *EIGHT_BITS)
PRECISIONS: dict[str, tuple[Precision, ...]] = {"onnxruntime-cuda": ("fp16", "fp32")}  # what it has fast kernels for
SINCE = {"bf16": 80, "fp8": 89}  # compute capabilities
# Seconds that a step must be given to have a chance to end, and what it is stopped after. With an H100 and 16 cores a
# build took 25 to 40, times of a small ViT 73 and of DINOv3 over 100: torch.compile of it alone takes a minute.
NEEDED = {"build": 45, "time": 100}
LONGEST = {"build": 150, "time": 200}
ROUNDS, LARGE_BATCH = 50, 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """`does`: "build" an artifact and compare its answers, or "time" what was built. `folder`: the bundle's."""

    does: str
    backend: str
    model: str
    precision: Precision
    size: str
    calib: str
    folder: str
    batch: int = 1

    @property
    def name(self) -> str:
        at = f", batch {self.batch}" if self.does == "time" else ""
        return f"{self.does} {self.model} {self.precision} on {self.backend}{at}"


def steps(
    backends: tuple[str, ...], target: str, size: str, calib: str, folder: Path, models: Sequence[str] = MODELS
) -> Iterator[Step]:
    """What matters most first: fp16 of every model and its times, then the other formats that the GPU has, then times
    at a batch, for which torch.compile works anew.
    """
    for backend in backends:
        formats = [each for each in PRECISIONS.get(backend, ENGINE_PRECISIONS) if int(target) >= SINCE.get(each, 0)]
        wanted: list[tuple[str, Precision, int]] = [
            ("build", formats[0], 1),
            ("time", formats[0], 1),
            *(("build", precision, 1) for precision in formats[1:]),
            ("time", formats[0], LARGE_BATCH),
        ]
        for does, precision, batch in wanted:
            for model in models:
                yield Step(does=does, backend=backend, model=model, precision=precision, size=size, calib=calib,
                           batch=batch, folder=str(folder / f"{model}-{precision}-{backend}"))  # fmt: skip


def build(step: Step) -> dict[str, Any]:
    """Export for the backend, run on the golden inputs, and count fused attention where the builder tells of it."""
    size, model = Resolution.parse(step.size), find_model(step.model)
    request = Request(
        model=model,
        resolutions=(size,),
        weights="random",
        precision=step.precision,
        calib=step.calib if step.precision in EIGHT_BITS else None,
        batch=Dim(min=1, opt=LARGE_BATCH, max=LARGE_BATCH),
        engines=(step.backend if step.backend in ENGINES else "none",),
    )
    start = time.perf_counter()
    bundle = export(request, out=Path(step.folder))
    seconds = time.perf_counter() - start
    runs = load(bundle.path, step.backend)
    (output,) = (each.name for each in bundle.manifest.artifacts[0].outputs)
    images, expected = golden.read(bundle.path / golden.name(size), [output])
    report = ParityReport(
        artifact=Path(step.folder).name,
        output=output,
        resolution=size,
        batch=len(images),
        inputs="golden",
        reference="PyTorch float32, unfolded",
        runtime=runs.describe(size),
        metrics=compare(runs.run(images).astype(np.float64), expected[output], output),
        tolerance=TOLERANCES[step.precision],
    )
    found: dict[str, Any] = {
        "passed": report.passed,
        "says": report.sentence(),
        "seconds": round(seconds, 1),
        "parity": parity_entry(report).model_dump(mode="json"),
    }
    if step.backend in ENGINES:
        found |= fused(bundle.path, bundle.manifest, blocks=len(model.blocks))
        found["passed"] = report.passed and found["fused_attention"] == found["blocks"]
    return found


def fused(folder: Path, listed: manifest.Manifest, *, blocks: int) -> dict[str, Any]:
    """Fused attentions among an engine's kernels, as `--require-fused-attention` finds them; one a block is right."""
    graph_path = next(each.path for each in listed.artifacts if each.kind == "onnx" and each.form == "portable")
    engine = next(each for each in listed.artifacts if each.kind in ENGINES)
    path = next(file.path for file in engine.files if file.kind == "layers")
    nodes, found = graph.named(folder / graph_path), kernels.read(folder / path)
    missing = fusion.not_fused(found, nodes.attentions, nodes.products)
    return {"kernels": len(found), "fused_attention": len(nodes.attentions) - len(missing), "blocks": blocks}


def take_times(step: Step) -> dict[str, Any]:
    """The bundle in turn with its peers. RoPE-Swin has no plain export: PyTorch turns by complex numbers there."""
    peers = ("eager", "compile", "plain") if find_model(step.model).window_of is None else ("eager", "compile")
    made = contenders([Path(step.folder)], peers, [step.backend])
    result = bench(made, batches=(step.batch,), rounds=ROUNDS)
    says = ", ".join(f"{each.contender} {each.summary()['ratio']:.2f}" for each in result.timings)
    return {"passed": True, "says": f"to the first: {says}", "benchmark": result.as_json()}


DO: dict[str, Callable[[Step], dict[str, Any]]] = {"build": build, "time": take_times}


def in_its_own_process(step: Step, seconds: float) -> dict[str, Any]:
    (found,) = ask_each(_take, [[step]], seconds=seconds)
    if isinstance(found, TimeoutError):
        return {"passed": False, "says": f"was stopped after {seconds:.0f} s."}
    if isinstance(found, WorkerDiedError):
        return {"passed": False, "says": f"its process ended {found}"}
    return dict(found)


def _take(channel: Channel, step: Step) -> None:
    try:
        channel.say(DO[step.does](step))
    except Exception as error:  # whatever it is, it is this step's result
        channel.say({"passed": False, "says": with_kind(error)})


def reason_to_skip(found: doctor.Diagnosis | None) -> str:
    """Why nothing can be shown here; empty where something can."""
    if found is None:
        _, why = hardware.gpus()
        return why
    usable = {(each.does, each.name) for each in found.backends if each.usable}
    if ("reference", "pytorch") not in usable:
        return "PyTorch, which everything is compared with, can't be used"
    return "" if backends_here(found) else f"none of {', '.join(BACKENDS)} can be used"


def backends_here(found: doctor.Diagnosis) -> tuple[str, ...]:
    """Those that run and, if they run engines, build them for this GPU, which TensorRT-RTX does not for every one."""
    usable = {(each.does, each.name) for each in found.backends if each.usable}
    here = []
    for name in BACKENDS:
        builds = name not in ENGINES or (
            ("builds", name) in usable and target_of(found) in BUILDERS[name]().all_targets
        )
        if ("runs", name) in usable and builds:
            here.append(name)
    return tuple(here)


def target_of(found: doctor.Diagnosis) -> str:
    """The first GPU's compute capability, as "90"."""
    gpus = found.machine["gpus"]
    assert isinstance(gpus, list)
    return str(gpus[0]["compute_cap"]).replace(".", "")


def run(wanted: list[Step], deadline: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """Keep every step's result; those that the deadline leaves no time for are skipped by a sentence."""
    for step in wanted:
        left = deadline - time.monotonic()
        row: dict[str, Any] = {"step": step.name, **asdict(step)}
        if step.does == "time" and not (Path(step.folder) / manifest.MANIFEST).is_file():
            row |= {"passed": None, "says": "skipped: there is nothing to time, its build did not end well."}
        elif left < NEEDED[step.does]:
            row |= {"passed": None, "says": f"skipped: it takes about {NEEDED[step.does]} s, {left:.0f} s were left."}
        else:
            row |= in_its_own_process(step, min(left, LONGEST[step.does]))
        verdict = {True: "good", False: "FAILED", None: "-"}[row["passed"]]
        print(f"{verdict:6} {step.name}: {row['says']}", flush=True)
        keep(row)


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("gpu_acceptance.json"), help="the result, as JSON")
    arguments.add_argument("--seconds", type=float, default=510, help="all that it may take")
    arguments.add_argument("--res", default="224", help="image size")
    arguments.add_argument("--calib", default="digits", metavar="DIR|digits", help="images that 8-bit ranges are from")
    arguments.add_argument("--model", action="append", help="may be repeated; default: one of every family")
    given = arguments.parse_args()
    deadline = time.monotonic() + given.seconds
    why = reason_to_skip(None)
    found = None if why else doctor.diagnose()
    why = why or reason_to_skip(found)
    if why or found is None:
        print(f"skipped: this machine can't show anything: {why}.")
        return 0
    whole: dict[str, Any] = {"machine": found.machine, "backends": [asdict(each) for each in found.backends]}
    results: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        results.append(row)
        given.out.write_text(json.dumps({**whole, "steps": results}, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        wanted = steps(
            backends_here(found), target_of(found), given.res, given.calib, Path(folder), given.model or MODELS
        )
        run(list(wanted), deadline, keep)
    failed = [row["step"] for row in results if row["passed"] is False]
    print(f"{len(failed)} of {len(results)} steps failed; {given.out}")
    return 1 if failed else 0
