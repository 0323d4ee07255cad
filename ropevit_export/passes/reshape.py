"""Reshapes that torch computes from runtime shapes, as ONNX can write them: 0 keeps an extent, -1 is what is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class StaticReshape(ir.passes.InPlacePass):
    """A Reshape whose target was computed becomes one with a constant target, where the known shapes allow it.

    An output extent that is a number stays; one that is the input's at the same place becomes 0; one that is left over
    becomes -1. Two left over: the node stays as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        constants: dict[tuple[int, ...], ir.Value] = {}
        modified = False
        for node in model.graph:
            if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].is_initializer():
                continue
            target = _target(node.inputs[0], node.outputs[0])
            if target is None:
                continue
            if target not in constants:
                constants[target] = _constant(model.graph, target)
            node.replace_input_with(1, constants[target])
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _target(source: ir.Value | None, result: ir.Value) -> tuple[int, ...] | None:
    if source is None or source.shape is None or result.shape is None:
        return None
    target = []
    for axis, extent in enumerate(result.shape):
        if isinstance(extent, int):
            target.append(extent)
        elif axis < len(source.shape) and source.shape[axis] == extent and extent.value is not None:
            target.append(0)
        else:
            target.append(-1)
    return tuple(target) if target.count(-1) <= 1 else None


def _constant(graph: ir.Graph, target: tuple[int, ...]) -> ir.Value:
    name = "shape_" + "_".join(str(extent).replace("-", "m") for extent in target)
    value = ir.Value(name=name, const_value=ir.tensor(np.array(target, np.int64), name=name))
    graph.register_initializer(value)
    return value
