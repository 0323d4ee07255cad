"""8-bit codes: their steps, those of weights, and the Q/DQ nodes that hold them.

Legend: I inputs · O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes  # noqa: F401  makes float8_e4m3fn a name that NumPy knows
import numpy as np
import onnx_ir as ir

from ropevit_export.formats import EIGHT_BITS, FORMATS
from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear
from ropevit_export.passes.quantize.ranges import Range

if TYPE_CHECKING:
    from ropevit_export.values import Array

Coding = Literal["int8", "fp8"]

KINDS = {name: np.dtype(FORMATS[name].numpy) for name in EIGHT_BITS}
# A range is one-sided where its short side is less than this of its long one: Gelu's ends at -0.17.
_ONE_SIDED = 0.5


class LayerEditor:
    """Puts nodes before a layer's product, named after the layer."""

    def __init__(self, graph: ir.Graph, layer: Linear) -> None:
        self.graph, self.layer = graph, layer

    def put(self, kind: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType, **attributes: Any) -> ir.Value:
        made = edit.node(kind, inputs, f"{self.layer.name}_{name}", dtype, **attributes)
        self.graph.insert_before(self.layer.product, made)
        return made.outputs[0]

    def decoded(self, name: str, codes: Array, scale_O: Array, dtype: ir.DataType, *, axis: int) -> ir.Value:
        """Constant codes behind a DQ, with zero points of their own: shared ones ONNX Runtime fails to make uint8, as
        `session.x64quantprecision` asks it to.
        """
        named = {"codes": codes, "scale": scale_O, "zeros": np.zeros(len(scale_O), codes.dtype)}
        parts = [edit.constant(self.graph, f"{self.layer.name}.{name}_{part}", array) for part, array in named.items()]
        return self.put("DequantizeLinear", parts, name, dtype, axis=axis)


def step_and_shift(measured: Range, coding: Coding) -> tuple[float, int]:
    """The size of one step, and at which step the middle of the codes lies: 0 unless an int8 range is one-sided."""
    low, high = measured.ends
    largest = FORMATS[coding].largest
    if coding == "int8" and min(-low, high) < _ONE_SIDED * max(-low, high):
        step = (high - low) / (2 * largest - 1)  # rounding the shift may take half a step at either end
        return step, round((low + high) / 2 / step)
    return (max(-low, high) or 1.0) / largest, 0


def weight_codes(weight_IO: Array, coding: Coding) -> tuple[Array, Array]:
    """Codes, and one scale an output channel in the weight's float type.

    Codes follow the scales as rounded: small float16 numbers, such as LayerScale leaves, are coarse.
    """
    largest, kind = FORMATS[coding].largest, weight_IO.dtype
    peak_O = np.abs(weight_IO).max(0).astype(np.float64)
    exact_O = np.maximum(peak_O, peak_O.max() * 1e-6) / largest
    scale_O = exact_O.astype(kind)
    scale_O = np.where(scale_O < exact_O, np.nextafter(scale_O, kind.type(np.inf)), scale_O)
    scale_O = np.maximum(scale_O, np.finfo(kind).tiny if kind == np.float32 else kind.type(2.0**-24))
    units_IO = np.clip(weight_IO / scale_O.astype(np.float64), -largest, largest)
    return (np.round(units_IO) if coding == "int8" else units_IO).astype(KINDS[coding]), scale_O
