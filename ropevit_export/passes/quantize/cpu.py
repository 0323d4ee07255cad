"""Linear layers in 8 bits as ONNX Runtime computes them on a CPU.

Legend: I inputs · O outputs of a layer.
"""

from __future__ import annotations

import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layers
from ropevit_export.passes.operators import DOMAIN, VERSION
from ropevit_export.passes.quantize.codes import weight_codes


class QuantizeAsItRuns(ir.passes.InPlacePass):
    """A linear layer becomes DynamicQuantizeMatMul: int8 weights, one scale an output; an input's range is measured
    over the whole batch when it runs, and the product comes back in float32, bias added.

    Against ranges measured beforehand (Q/DQ, the form for engines) it needs one operator where ONNX Runtime wants Q/DQ
    in shapes of its own, and an image's codes fit that image. The price: an answer depends, within what 8 bits err by,
    on the images beside it in the batch. Attention stays one float32 operator (`passes.attention`).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = linear_layers(model)
        for each in found:
            _quantize(model.graph, each)
        if found:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, modified=bool(found))


def _quantize(graph: ir.Graph, layer: Linear) -> None:
    codes_IO, scale_O = weight_codes(edit.array_of(layer.weight), "int8")
    inputs = [
        layer.x,
        edit.constant(graph, f"{layer.name}.weight_codes", codes_IO),
        edit.constant(graph, f"{layer.name}.weight_scale", scale_O),
        None,  # zero points are 0
        layer.bias,
    ]
    replaced = [layer.product] if layer.add is None else [layer.add, layer.product]
    name = layer.product.name or layer.name
    made = edit.node("DynamicQuantizeMatMul", inputs, f"{name}_quantized", layer.result.dtype, domain=DOMAIN)
    graph.insert_before(layer.product, made)
    edit.rename_to(made.outputs[0], layer.result)
    for node in replaced:
        graph.remove(node, safe=True)
    edit.forget(graph, layer.weight)
