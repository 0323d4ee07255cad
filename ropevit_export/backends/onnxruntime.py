"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.errors import BackendError

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays


class OnnxRuntime:
    """A session. ONNX Runtime silently replaces a provider that it can't load, so what it loaded is compared."""

    def __init__(
        self,
        model: Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        precision: str = "fp32",
        optimise: bool = True,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"onnxruntime can't be imported ({error}): pip install onnxruntime") from error
        if precision == "bf16" and tuple(providers) == ("CPUExecutionProvider",):
            raise BackendError(
                f"ONNX Runtime's CPU provider has no bfloat16 for {model.name}: use OpenVINO or another provider."
            )
        options = onnxruntime.SessionOptions()
        if not optimise or precision == "fp8":  # whose operators it has, but does not fuse
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=list(providers))
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"ONNX Runtime refuses {model.name}: {_line(error)}") from error
        loaded = self._session.get_providers()
        if loaded[: len(providers)] != list(providers):
            raise BackendError(f"asked ONNX Runtime for {', '.join(providers)}, it loaded {', '.join(loaded)}.")
        ends = [*self._session.get_inputs(), *self._session.get_outputs()]
        if any(each.type == "tensor(bfloat16)" for each in ends):
            raise BackendError(
                f"ONNX Runtime's Python interface has no bfloat16 arrays, which {model.name} takes or gives: use "
                "OpenVINO, or --io-precision fp32."
            )
        self._version = str(onnxruntime.__version__)
        self._providers = tuple(providers)
        self._precision = precision

    @property
    def describe(self) -> str:
        computed = "float32"
        if self._precision in ("int8", "fp8"):
            computed = f"{self._precision} linear layers"
        elif self._precision != "fp32" and self._providers == ("CPUExecutionProvider",):
            computed = f"{self._precision} weights and values, computed mostly in float32: no proof against overflow"
        elif self._precision != "fp32":
            computed = self._precision
        return f"ONNX Runtime {self._version}, {', '.join(self._providers)}, {computed}"

    def run(self, feeds: Arrays, output: str) -> Array:
        return self.run_all(feeds, [output])[0]

    def run_all(self, feeds: Arrays, outputs: Sequence[str]) -> list[Array]:
        try:
            return [np.asarray(each) for each in self._session.run(list(outputs), dict(feeds))]
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed to run: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
