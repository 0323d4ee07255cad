"""`tuned.json`: how a bundle runs fastest on one machine, as `tune` measured it there.

It lies beside the manifest, which does not list it. Where machine, library or manifest differ it is not used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ropevit_export.backends.select import ENGINES, RUNNERS, forms
from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError, first_fault
from ropevit_export.machine import hardware
from ropevit_export.machine.files import sha256
from ropevit_export.values import Form

TUNED = "tuned.json"
Goal = Literal["latency", "throughput"]
_MOST = 1 << 20  # bytes of a file that is read
_Count = Annotated[int, Field(ge=1, le=4096)]
# The packages that a backend's library may come from.
_PACKAGES = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
_ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Strict):
    """How to run a bundle: `runtime.load(bundle, backend, form=form, **options)`.

    form     of the graph; None: the backend's own where the bundle has it
    compute  what OpenVINO computes floating-point parts in: "f32" or "bf16"; None: what the precision says
    threads  of one answer; None: all cores
    streams  answers side by side
    """

    backend: str
    form: Form | None = None
    compute: Literal["f32", "bf16"] | None = None
    threads: _Count | None = None
    streams: _Count = 1

    @property
    def options(self) -> dict[str, Any]:
        """Those that were chosen, for a runner."""
        chosen = {"compute": self.compute, "threads": self.threads}
        streams = {"streams": self.streams} if self.streams > 1 else {}
        return {name: value for name, value in chosen.items() if value is not None} | streams

    @property
    def name(self) -> str:
        """Such as `openvino bf16, 2 streams`."""
        parts = [self.backend, *([f"({self.form})"] if self.form else []), *([self.compute] if self.compute else [])]
        text = " ".join(parts)
        text += f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return text + (f", {self.streams} streams" if self.streams > 1 else "")


class Machine(_Strict):
    """What a choice holds for: the processor, its instructions, the cores that this process may use."""

    processor: str
    features: tuple[str, ...]
    cores: int | None


class Row(_Strict):
    """A setting that was tried. Milliseconds of a batch (median); none for one that was not timed, for the `reason`.

    worst: the largest deviation from the reference's answers, as a part of the bundle's own limit.
    """

    setting: Setting
    milliseconds: float | None = None
    images_per_second: float | None = None
    worst: float | None = None
    reason: str = ""


class Tuned(_Strict):
    schema_version: Literal[1] = 1
    manifest_sha256: Annotated[str, manifest.Sha256]
    machine: Machine
    version: str | None  # of the chosen setting's library
    goal: Goal
    batch: _Count
    resolution: manifest.Size
    rounds: _Count
    chosen: Setting
    rows: tuple[Row, ...]


def this_machine() -> Machine:
    processor = hardware.cpu_fields().get("model name") or platform.processor()
    return Machine(processor=processor, features=tuple(hardware.cpu_features()), cores=hardware.cores())


def version_of(backend: str) -> str | None:
    """The release of the library that a backend is, where a package of it is installed."""
    for package in _PACKAGES.get(backend, _ONNXRUNTIME):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def read(bundle: Path) -> Tuned | None:
    """None where the bundle was never tuned. Raises BundleError for a file that is none of `tune`'s."""
    path = bundle / TUNED
    if not path.exists():
        return None
    if not path.is_file() or path.stat().st_size > _MOST:
        raise BundleError(f"{path} is no file that tune wrote: remove it, or run tune again.")
    try:
        found = Tuned.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path}: {first_fault(error)}. Remove it, or run tune again.") from error
    if found.chosen.backend not in RUNNERS:
        raise BundleError(f"{path} names the backend {found.chosen.backend!r}: there are {', '.join(RUNNERS)}.")
    return found


def write(bundle: Path, tuned: Tuned) -> None:
    """In one step: a reader finds the older file or this one."""
    draft = bundle / f".{TUNED}.{os.getpid()}"
    try:
        draft.write_text(tuned.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.replace(bundle / TUNED)
    finally:
        draft.unlink(missing_ok=True)


def choose(bundle: Path) -> tuple[Setting, str]:
    """What `load(bundle, "auto")` takes, and why: what `tune` found on this machine with this release of the library
    for this manifest; else OpenVINO where it is installed, else ONNX Runtime, both as they come.
    """
    tuned = read(bundle)
    if tuned is None:
        return _default("this bundle was not tuned")
    if tuned.manifest_sha256 != sha256(bundle / manifest.MANIFEST):
        return _default(f"{TUNED} is of another manifest")
    if tuned.machine != this_machine():
        return _default(f"{TUNED} is of another machine ({tuned.machine.processor}, {tuned.machine.cores} cores)")
    if tuned.version != version_of(tuned.chosen.backend):
        return _default(f"{TUNED} is of {tuned.chosen.backend} {tuned.version}")
    return tuned.chosen, f"as tuned for {tuned.goal} on this machine"


def _default(reason: str) -> tuple[Setting, str]:
    installed = importlib.util.find_spec("openvino") is not None
    backend = "openvino" if installed else "onnxruntime"
    return Setting(backend=backend), f"the default, {reason}"


def candidates(
    listed: manifest.Manifest, backends: tuple[str, ...], goal: Goal, features: tuple[str, ...], cores: int
) -> list[Setting]:
    """Every way to run a bundle that may be the fastest: each backend on each form that it takes, OpenVINO in bfloat16
    too where the CPU has it, half of the cores where there are four, and for throughput several streams.
    """
    held: list[Form] = sorted({each.form for each in listed.artifacts if each.kind == "onnx"})
    found: list[Setting] = []
    for backend in backends:
        own: list[Form | None] = [None]
        if backend not in ENGINES:
            taken = forms(backend, listed.artifacts[0].precision)
            own = [form for form in held if form in taken]
        threads = [None, cores // 2] if cores >= 4 and backend in ("onnxruntime", "openvino") else [None]
        streams = [1]
        if goal == "throughput" and backend in ("onnxruntime", "openvino"):
            streams = [1, *(2**power for power in range(1, cores.bit_length()) if 2**power <= cores)]
        for form in own:
            for compute in _computes(listed, backend, features):
                found += [
                    Setting(backend=backend, form=form, compute=compute, threads=each, streams=side)
                    for each in threads
                    for side in streams
                ]
    return found


def _computes(
    listed: manifest.Manifest, backend: str, features: tuple[str, ...]
) -> list[Literal["f32", "bf16"] | None]:
    has_bf16 = {"avx512_bf16", "amx_bf16", "bf16"} & set(features)
    if backend == "openvino" and has_bf16 and listed.artifacts[0].precision != "bf16":
        return [None, "bf16"]
    return [None]
