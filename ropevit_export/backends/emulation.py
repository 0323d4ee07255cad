"""16-bit arithmetic on a CPU that has none: computed in float32, every result rounded.

ONNX Runtime's CPU provider runs a float16 graph mostly in float32, so an overflow passes it, and a bfloat16 graph not
at all. Rounding each result as the graph's own format would is what a GPU does, which accumulates in float32 too; here
attention scores and probabilities are rounded as well, which fused attention keeps in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ropevit_export.backends.onnxruntime import OnnxRuntime
from ropevit_export.formats import FORMATS, SIXTEEN_BITS

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

_HALVES = tuple(ir.DataType[FORMATS[name].onnx] for name in SIXTEEN_BITS)


class Emulated:
    """A 16-bit graph whose every result is rounded to its own format. Answers are float32 arrays of such numbers."""

    def __init__(self, model: Path, *, precision: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "emulated.onnx"
            ir.save(rounded(ir.load(model)), path, external_data="emulated.data")
            # A session's own optimisation may drop a pair of casts.
            self._session = OnnxRuntime(path, optimise=False)
        self._rounded = FORMATS[precision].numpy

    @property
    def describe(self) -> str:
        return f"{self._session.describe}, every result rounded to {self._rounded}"

    def run(self, feeds: Arrays) -> dict[str, Array]:
        given = {name: array if array.dtype == np.uint8 else array.astype(np.float32) for name, array in feeds.items()}
        return self._session.run(given)


def rounded(model: ir.Model) -> ir.Model:
    """The model in float32, with what it computes in 16 bits rounded to them. The model given is used up."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype in _HALVES:
            value.dtype = ir.DataType.FLOAT
    for value in graph.initializers.values():
        if value.dtype in _HALVES and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in _HALVES:
                _round(graph, node, value)
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target is not None and target.as_int() in _HALVES:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    return model


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    assert value.dtype is not None
    users = list(value.uses())
    down = ir.node("Cast", [value], attributes={"to": value.dtype})
    up = ir.node("Cast", [down.outputs[0]], attributes={"to": ir.DataType.FLOAT})
    down.outputs[0].name, up.outputs[0].name = f"{value.name}.narrow", f"{value.name}.rounded"
    down.outputs[0].dtype, up.outputs[0].dtype = value.dtype, ir.DataType.FLOAT
    value.dtype = ir.DataType.FLOAT
    for user, index in users:
        user.replace_input_with(index, up.outputs[0])
    graph.insert_after(node, [down, up])
    for at, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[at] = up.outputs[0]
            value.name, up.outputs[0].name = f"{value.name}.exact", value.name
