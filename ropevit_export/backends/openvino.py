"""OpenVINO, on the CPU or another of its devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ropevit_export.errors import BackendError

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# What to compute in, by the graph's precision. Left to itself OpenVINO takes bfloat16 for a float32 graph where the CPU
# has it; asked for float16 where it hasn't, it takes bfloat16 too, silently.
_COMPUTE = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32", "fp8": "f32"}


class OpenVino:
    """A compiled graph. What it computes in is asked for and, because a device may do otherwise, read back."""

    def __init__(self, model: Path, device: str = "CPU", *, precision: str = "fp32") -> None:
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                f"OpenVINO can't be imported ({error}): pip install 'ropevit-export[openvino]'"
            ) from error
        wanted = _COMPUTE[precision]
        try:
            core = openvino.Core()
            self._compiled: Any = core.compile_model(
                str(model), device, {"INFERENCE_PRECISION_HINT": wanted, "PERFORMANCE_HINT": "LATENCY"}
            )
            taken = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except Exception as error:  # RuntimeError of several kinds
            raise BackendError(f"OpenVINO refuses {model.name}: {_last_line(error)}") from error
        if taken != wanted:
            raise BackendError(f"asked OpenVINO to compute {model.name} in {wanted}, {device} takes {taken}.")
        self._inputs = {each.get_any_name() for each in self._compiled.inputs}
        bfloat16 = [each for each in self._compiled.outputs if each.get_element_type().get_type_name() == "bf16"]
        self._bfloat16 = {each.get_any_name() for each in bfloat16}
        self._describe = f"OpenVINO {openvino.__version__.split('-')[0]}, {device}, computed in {taken}"
        if precision in ("int8", "fp8"):
            self._describe += f" around {precision} codes"
        if precision == "fp16":
            self._describe += ", float16 weights: no proof against overflow"

    @property
    def describe(self) -> str:
        return self._describe

    def run(self, feeds: Arrays, output: str) -> Array:
        missing = self._inputs - feeds.keys()
        if missing:  # OpenVINO would go on with whatever was there
            raise BackendError(f"OpenVINO failed to run: no {', '.join(sorted(missing))} was given.")
        try:
            answer = np.array(self._compiled(dict(feeds))[output])
        except Exception as error:
            raise BackendError(f"OpenVINO failed to run: {_last_line(error)}") from error
        return answer.view(ml_dtypes.bfloat16) if output in self._bfloat16 else answer  # it calls the bits float16


def _last_line(error: Exception) -> str:
    """The reason stands below the places it came through."""
    return str(error).strip().splitlines()[-1][:300]
