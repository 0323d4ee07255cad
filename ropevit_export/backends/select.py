"""Which builders serve `--engine`, and which runners a loaded bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ropevit_export.backends.base import Builder, Runner
from ropevit_export.backends.emulation import Emulated
from ropevit_export.backends.engine_runner import LIBRARIES, EngineRunner
from ropevit_export.backends.onnxruntime import PROVIDERS, OnnxRuntime
from ropevit_export.backends.openvino import OpenVino, OpenVinoBuilder
from ropevit_export.backends.tensorrt import TensorRt
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.errors import BackendError, UsageError
from ropevit_export.formats import EIGHT_BITS, SIXTEEN_BITS
from ropevit_export.machine import hardware
from ropevit_export.values import Form

BUILDERS: dict[str, Callable[[], Builder]] = {
    "tensorrt": TensorRt,
    "tensorrt-rtx": TensorRtRtx,
    "openvino": OpenVinoBuilder,
}
# What `auto` tries, in this order.
AUTO = ("tensorrt", "tensorrt-rtx")
CHOICES = ("auto", "none", *BUILDERS)
RUNNERS: dict[str, Callable[..., Runner]] = {
    **{name: functools.partial(OnnxRuntime, providers=(each.name,)) for name, each in PROVIDERS.items()},
    "openvino": OpenVino,
    **{name: functools.partial(EngineRunner, runtime=name) for name in LIBRARIES},
}
# Of graphs that are in several forms, those made for a backend; ONNX Runtime's 8-bit form is for its CPU kernels.
_FORMS: dict[str, tuple[Form, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-cuda": ("onnxruntime",),
    "openvino": ("openvino", "openvino-avx2"),
}
# Backends that run on an NVIDIA GPU, and those of them that run engines instead of ONNX files.
ON_GPU = (*(name for name, each in PROVIDERS.items() if each.gpu), *LIBRARIES)
ENGINES = tuple(LIBRARIES)


def checkers(model: Path, precision: str) -> Iterator[OnnxRuntime | Emulated]:
    """What an ONNX file is compared with the reference on, one after the other: ONNX Runtime as users run it and, where
    that does not compute in the graph's own precision, arithmetic that does.
    """
    if precision != "bf16":
        yield OnnxRuntime(model, precision=precision)
    if precision in SIXTEEN_BITS:
        yield Emulated(model, precision=precision)


def forms(backend: str | None, precision: str, device: str = "CPU") -> tuple[Form, ...]:
    """Those of a graph's forms that a backend takes, the one first that it is fastest with on this machine. `device`:
    of OpenVINO.
    """
    if precision in EIGHT_BITS and backend in ON_GPU:
        return ("portable",)
    own = _FORMS.get(backend or "", ())
    if backend == "openvino" and device == "CPU" and hardware.ends_at_avx2():
        own = own[::-1]
    return (*own, "portable")


def runner(backend: str, model: Path, precision: str, **options: Any) -> Runner:
    """An ONNX file or an engine, loaded; `options` are the runner's own. Raises BackendError."""
    if backend not in RUNNERS:
        raise BackendError(f"no backend {backend!r} runs a bundle: there are {', '.join(RUNNERS)}.")
    return RUNNERS[backend](model, precision=precision, **options)


def builders(engines: tuple[str, ...]) -> tuple[list[Builder], str | None]:
    """Builders in the order asked for, and, where `auto` found none, a sentence why.

    An engine asked for by name must be there; `auto` takes the first that is.
    """
    if "none" in engines and len(engines) > 1:
        raise UsageError(f"--engine none excludes the others, given: {', '.join(engines)}.")
    if engines == ("none",):
        return [], None
    if "auto" not in engines:
        return [BUILDERS[name]() for name in dict.fromkeys(engines)], None
    reasons = []
    for name in AUTO:
        try:
            return [BUILDERS[name]()], None
        except BackendError as error:
            reasons.append(str(error))
    return [], f"no engine was built: {'; '.join(reasons)}"
