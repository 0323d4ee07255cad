"""8-bit products, as Q/DQ where runtimes use it.

Quantized: the products of `linear.py`, weights by output channel. Not quantized: attention (TensorRT-RTX keeps its
fused one with float16 queries), LayerNorm, the rotation, what is added to the tokens, the patch convolution, the last
layer.

Why not a library's own placement: with their defaults, modelopt and onnxruntime.quantization leave features of a
trained ViT at a cosine of 0.91 and 0.96, this at 0.999 (`scripts/bench_quantize` measures it). They quantize residual
sums and attention too, give Gelu's one-sided outputs half of the codes, and leave outliers where they are. modelopt
also asks for older releases of onnx and onnxruntime than this package's.

Legend: I inputs · O outputs of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layers
from ropevit_export.passes.quantize.codes import KINDS, Coding, LayerEditor, step_and_shift, weight_codes
from ropevit_export.passes.quantize.ranges import Ranges

if TYPE_CHECKING:
    from ropevit_export.values import Array


class QuantizeLinear(ir.passes.InPlacePass):
    """Q/DQ before both inputs of every linear layer whose input has a range; the form for engines.

    Zero points are 0, as TensorRT wants them. A one-sided int8 input is moved to the middle of the codes by a
    subtraction, which fuses with what is before it, and what that takes away comes back in the bias. The shift is a
    whole number of steps: most of Gelu's outputs are near 0, which stays exact. Scales have the graph's float type.
    """

    def __init__(self, ranges: Ranges, coding: Coding) -> None:
        super().__init__()
        self.ranges, self.coding = ranges, coding

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in linear_layers(model) if each.x.name in self.ranges]
        for each in found:
            self._quantize(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))

    def _quantize(self, graph: ir.Graph, layer: Linear) -> None:
        name, dtype, kind = layer.name, layer.weight.dtype, KINDS[self.coding]
        assert dtype is not None
        weight_IO = edit.array_of(layer.weight)
        codes_IO, scale_O = weight_codes(weight_IO, self.coding)
        step, shift = step_and_shift(self.ranges[str(layer.x.name)], self.coding)
        step = weight_IO.dtype.type(step)
        x, editor = layer.x, LayerEditor(graph, layer)
        if shift:
            centre = weight_IO.dtype.type(shift * step)
            x = editor.put("Sub", [x, edit.constant(graph, f"{name}.centre", np.asarray(centre))], "shifted", dtype)
            # Of the weights as coded: where x is 0, what was taken away and what comes back are the same and cancel.
            _add_to_bias(graph, layer, centre * (codes_IO.astype(np.float64) * scale_O).sum(0))
        steps = [
            edit.constant(graph, f"{name}.input_scale", np.asarray(step)),
            edit.constant(graph, f"zero_{self.coding}", np.zeros((), kind)),
        ]
        x = editor.put("QuantizeLinear", [x, *steps], "codes", ir.DataType.from_numpy(kind))
        layer.product.replace_input_with(0, editor.put("DequantizeLinear", [x, *steps], "input", dtype))
        layer.product.replace_input_with(1, editor.decoded("weight", codes_IO, scale_O, dtype, axis=1))
        edit.forget(graph, layer.weight)


def _add_to_bias(graph: ir.Graph, layer: Linear, more_O: Array) -> None:
    kind = edit.array_of(layer.weight).dtype
    if layer.bias is not None:
        total_O = (edit.array_of(layer.bias) + more_O).astype(kind)
        holder = layer.add or layer.product
        new = edit.constant(graph, f"{layer.name}.shifted_bias", total_O)
        holder.replace_input_with(list(holder.inputs).index(layer.bias), new)
        edit.forget(graph, layer.bias)
        return
    before = layer.product.outputs[0]
    new = edit.constant(graph, f"{layer.name}.shifted_bias", more_O.astype(kind))
    add = edit.node("Add", [before, new], f"{layer.name}_unshifted", before.dtype)
    edit.rename_to(add.outputs[0], before)
    add.replace_input_with(0, before)
    graph.insert_after(layer.product, add)
