"""Peers: what a user would run otherwise than a bundle of the same model, to be timed beside it."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ropevit_export.backends import onnxruntime, openvino
from ropevit_export.backends.select import BUILDERS, ENGINES, ON_GPU, runner
from ropevit_export.errors import UsageError
from ropevit_export.machine import hardware
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.compare import compare
from ropevit_export.request import EngineSpec
from ropevit_export.values import DTYPES, Precision, Resolution

if TYPE_CHECKING:
    from ropevit_export.backends.base import Runner
    from ropevit_export.bundle import manifest
    from ropevit_export.models.reference import Reference
    from ropevit_export.values import Arrays, FloatArray

Run: TypeAlias = Callable[[], object]
# Below this cosine to float32 a peer's answers are no answers: its time is that of something else.
_STILL_THE_MODEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """images (B, 3, H, W), normalised. precision: the bundle's on a GPU, float32 on a CPU, where peers that are
    rounded say so by their name.
    """

    model: Reference
    images: FloatArray
    backend: str
    precision: Precision

    @property
    def names(self) -> list[str]:
        return [output.name for output in self.model.outputs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """make: (what runs, a call that answers one batch). exact: answers are float32's; others are compared with them.
    backends: those that it runs on, a contender each; by default all, and None for PyTorch.
    """

    make: Callable[[Job], tuple[str, Callable[[], Arrays]]]
    exact: bool = False
    backends: tuple[str, ...] | None = ()

    def on(self, name: str, backends: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the backends it is timed on. Raises UsageError."""
        if self.backends is None:
            return backends[:1]
        mine = tuple(each for each in backends if not self.backends or each in self.backends)
        if not mine:
            raise UsageError(f"--peer {name} runs on {', '.join(self.backends)}: add --backend {self.backends[0]}.")
        return mine


def prepare(
    peer: str, listed: manifest.Manifest, backend: str, size: Resolution, images: FloatArray
) -> tuple[str, Run]:
    """The peer of a bundle's model with random weights, which cost the same time."""
    from ropevit_export.models import reference
    from ropevit_export.models.adopt import adopt
    from ropevit_export.models.initial import random_checkpoint
    from ropevit_export.models.resize import resize

    spec = find_model(listed.model)
    weights = resize(spec, adopt(spec, random_checkpoint(spec, seed=0)), size)
    outputs = [entry.value() for entry in listed.artifacts[0].outputs]
    model, kind = reference.build(spec, weights, size, outputs), PEERS[peer]
    exact = {} if kind.exact else reference.run(model, images)
    job = Job(model=model, images=images, backend=backend, precision=precision_on(backend, listed))
    text, run = kind.make(job)
    return f"{text}, {nearness(run(), exact)}" if exact else text, run


def precision_on(backend: str, listed: manifest.Manifest) -> Precision:
    """On a GPU the bundle's own, of 8-bit ones what their other operations are in."""
    found = listed.artifacts[0].precision
    if backend not in ON_GPU or found == "fp32":
        return "fp32"
    return "bf16" if found == "bf16" else "fp16"


def nearness(found: Arrays, exact: Arrays) -> str:
    """Of a peer that is not float32, to float32."""
    if not all(np.isfinite(found[name].astype(np.float64)).all() for name in exact):
        return "INVALID: answers NaN or Inf"
    least = min(compare(found[name].astype(np.float32), exact[name], name).cosine for name in exact)
    return f"{'' if least >= _STILL_THE_MODEL else 'INVALID: '}cosine {least:.4f} to float32"


# In PyTorch -----------------------------------------------------------------------------------------------------------


def _eager(job: Job) -> tuple[str, Callable[[], Arrays]]:
    return _in_torch(job, "eager", job.precision, compiled=False)


def _compile(job: Job) -> tuple[str, Callable[[], Arrays]]:
    return _in_torch(job, "torch.compile", job.precision)


def _compile_bf16(job: Job) -> tuple[str, Callable[[], Arrays]]:
    return _in_torch(job, "torch.compile", "bf16")


def _torchao_int8(job: Job) -> tuple[str, Callable[[], Arrays]]:
    return _in_torch(job, "torch.compile, torchao's int8 weights and activations", "bf16", eight_bits=True)


def _in_torch(
    job: Job, how: str, precision: Precision, *, compiled: bool = True, eight_bits: bool = False
) -> tuple[str, Callable[[], Arrays]]:
    from ropevit_export.models import reference

    device = "cuda" if job.backend in ON_GPU else "cpu"
    answers = reference.batch_runner(
        job.model, compiled=compiled, device=device, precision=precision, eight_bits=eight_bits
    )
    text = f"PyTorch {importlib.metadata.version('torch')}, {how}, {device}, {DTYPES[precision]}"
    return text, lambda: dict(zip(job.names, answers(job.images), strict=True))


# Of the plain export --------------------------------------------------------------------------------------------------


def _plain(job: Job) -> tuple[str, Callable[[], Arrays]]:
    from ropevit_export.models import reference

    session = plain_session(job.backend, reference.rounded(job.model, job.precision), job)
    return _said(session, job, "plain torch.onnx.export")


def _plain_int8(job: Job) -> tuple[str, Callable[[], Arrays]]:
    with _exported(job) as path:
        made = path.with_name("int8.onnx")
        onnxruntime.quantize_dynamically(path, made)
        session = runner(job.backend, made, "int8")
    return _said(session, job, "onnxruntime.quantization.quantize_dynamic of the plain export")


def _static_int8(job: Job) -> tuple[str, Callable[[], Arrays]]:
    with _exported(job) as path:
        made = path.with_name("int8.onnx")
        onnxruntime.quantize_statically(path, made, _calibration(job))
        session = runner(job.backend, made, "int8")
    return _said(session, job, "onnxruntime.quantization.quantize_static of the plain export")


def _nncf_int8(job: Job) -> tuple[str, Callable[[], Arrays]]:
    compute = "bf16" if {"avx512_bf16", "amx_bf16"} & set(hardware.cpu_features()) else "f32"
    with _exported(job) as path:
        made = path.with_suffix(".xml")
        openvino.quantize(path, made, _calibration(job))
        session = runner(job.backend, made, "int8", compute=compute)
    return _said(session, job, "NNCF's int8 of the plain export")


def plain_session(backend: str, model: Any, job: Job) -> Runner:
    """The model's plain export on a backend, on float32 images as all contenders; on a backend that runs engines, an
    engine built from it.
    """
    with _exported(job, model) as path:
        if backend not in ENGINES:
            return runner(backend, path, job.precision)
        maker = BUILDERS[backend]()
        spec = EngineSpec(runtime=backend, precision=job.precision, targets=(), profiles=())
        engine = path.with_suffix(maker.suffix)
        plan = maker.build(path, spec, engine)
        return runner(backend, engine, job.precision, targets=plan.targets, built_with=plan.built_with)


def _gemms(job: Job) -> tuple[str, Callable[[], Arrays]]:
    """No model: its products with weights side by side, each on an input of its size. What is slower by nothing else
    than these has nothing left to gain but by fewer bits.
    """
    import onnx

    from ropevit_export.models import reference

    shapes = reference.linear_shapes(job.model, job.images)
    generator, nodes, weights = np.random.default_rng(0), [], []
    feeds: dict[str, FloatArray] = {}
    for index, (tokens, inputs, outputs) in enumerate(shapes):
        x = f"x_{tokens}_{inputs}"
        feeds.setdefault(x, generator.standard_normal((tokens, inputs), np.float32))
        weight = generator.standard_normal((inputs, outputs), np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"w_{index}"))
        nodes.append(onnx.helper.make_node("MatMul", [x, f"w_{index}"], [f"y_{index}"]))
    floats = onnx.TensorProto.FLOAT
    inputs_ = [onnx.helper.make_tensor_value_info(name, floats, x.shape) for name, x in feeds.items()]
    results = [
        onnx.helper.make_tensor_value_info(f"y_{index}", floats, (tokens, outputs))
        for index, (tokens, _, outputs) in enumerate(shapes)
    ]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "gemms", inputs_, results, weights),
        opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemms.onnx"
        onnx.save(made, path, save_as_external_data=True)
        session = runner(job.backend, path, "fp32")
    text = f"{session.describe}, {len(shapes)} products with weights and nothing else: no model, the floor of float32"
    return text, lambda: session.run(feeds)


@contextmanager
def _exported(job: Job, model: Any = None) -> Iterator[Path]:
    from ropevit_export.trace.export import export_plain

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        export_plain(model or job.model, job.images, path, job.names, "float32")
        yield path


def _calibration(job: Job) -> list[Arrays]:
    """What static ranges are measured on: the images themselves and noise, since weights are random as well."""
    noise = np.random.default_rng(0).standard_normal(job.images.shape, np.float32)
    return [{"image": job.images}, {"image": noise}]


def _said(session: Runner, job: Job, how: str) -> tuple[str, Callable[[], Arrays]]:
    return f"{session.describe}, {how}", lambda: session.run({"image": job.images})


PEERS = {
    "eager": Peer(make=_eager, exact=True, backends=None),
    "compile": Peer(make=_compile, exact=True, backends=None),
    "compile-bf16": Peer(make=_compile_bf16, backends=None),
    "torchao-int8": Peer(make=_torchao_int8, backends=None),
    "plain": Peer(make=_plain, exact=True),
    "plain-int8": Peer(make=_plain_int8, backends=("onnxruntime", "openvino")),
    "static-int8": Peer(make=_static_int8, backends=("onnxruntime",)),
    "nncf-int8": Peer(make=_nncf_int8, backends=("openvino",)),
    "gemms": Peer(make=_gemms, exact=True, backends=("onnxruntime", "openvino")),
}
