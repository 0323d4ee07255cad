"""The patch convolution, in the form that TensorRT moves least for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit


class PatchesToDepth(ir.passes.InPlacePass):
    """A convolution whose steps are as long as its kernel becomes SpaceToDepth and a product at every place.

    The same sums. TensorRT pads an image's three channels to four before a float16 convolution, and reads zeros from
    memory for it: 1.1 MB an image of 384 pixels, where this form copies the patches once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if node.op_type == "Conv" and _cuts_patches(node)]
        for node in found:
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(found))


def _cuts_patches(conv: ir.Node) -> bool:
    weight = conv.inputs[1]
    if weight is None or weight.const_value is None or conv.inputs[0] is None:
        return False
    kernel = list(weight.const_value.shape.numpy()[2:])
    plain = {"pads": [0] * 4, "dilations": [1, 1], "group": 1, "auto_pad": "NOTSET"}
    given = {name: attribute.value for name, attribute in conv.attributes.items()}
    others = all(_listed(given[name]) == default for name, default in plain.items() if name in given)
    return others and len(set(kernel)) == 1 and kernel[0] > 1 and _listed(given.get("strides")) == kernel


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _rewrite(graph: ir.Graph, conv: ir.Node) -> None:
    image, weight = conv.inputs[:2]
    assert image is not None
    assert weight is not None
    array_OCHW = edit.array_of(weight)
    outputs, side = array_OCHW.shape[0], array_OCHW.shape[2]
    depth = edit.node("SpaceToDepth", [image], f"{conv.name}_patches", image.dtype, blocksize=side)
    graph.insert_before(conv, depth)
    conv.replace_input_with(0, depth.outputs[0])
    # SpaceToDepth orders a patch's values by row, column, channel.
    array = np.ascontiguousarray(array_OCHW.transpose(0, 2, 3, 1)).reshape(outputs, -1, 1, 1)
    weight.const_value = ir.tensor(array, dtype=weight.dtype, name=weight.name)
    weight.shape = ir.Shape(array.shape)
    for name in ("strides", "kernel_shape"):
        conv.attributes.pop(name, None)
