"""The graph's own number format: what the runtime computes in is written in the graph, not asked for at build time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError

_HALF_MAX = float(np.finfo(np.float16).max)


class ToFloat16(ir.passes.InPlacePass):
    """Float32 weights, tables and values become float16; the graph's inputs and outputs keep their types, behind casts.

    What stays sane by the operators' own definitions: LayerNormalization computes mean and variance in float32
    (`stash_type` 1), and runtimes accumulate MatMul and Softmax of float16 in float32. Rotary tables are rounded from
    the float32 ones, an error of 2e-4, which is below that of the float16 queries they turn.

    Raises PassError where a weight is too large for float16, by name: it would become infinity.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for value in graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                value.const_value = _half(value)
                value.dtype = ir.DataType.FLOAT16
        floats = [value for value in graph.inputs if value.dtype == ir.DataType.FLOAT]
        for node in list(graph):
            _retype(node)
        for value in floats:
            _cast_input(graph, value)
        for index, value in enumerate(graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                graph.outputs[index] = _cast_output(graph, value)
        graph.sort()
        return ir.passes.PassResult(model, modified=True)


def _half(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    array = value.const_value.numpy()
    largest = float(np.abs(array).max(initial=0.0))
    if largest > _HALF_MAX:
        raise PassError(
            f"{value.name} holds {largest:.3g}, float16 ends at {_HALF_MAX:.0f}: use --precision fp32 for this model."
        )
    return ir.Tensor(array.astype(np.float16), name=value.name)


def _retype(node: ir.Node) -> None:
    target = node.attributes.get("to")
    if node.op_type == "Cast" and target is not None and target.as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    for output in node.outputs:
        if output.dtype == ir.DataType.FLOAT:
            output.dtype = ir.DataType.FLOAT16


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    users = list(value.uses())
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16}, name=f"{value.name}_to_fp16")
    half = cast.outputs[0]
    half.name, half.dtype, half.shape = f"{value.name}_fp16", ir.DataType.FLOAT16, value.shape
    for user, index in users:
        user.replace_input_with(index, half)
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = value.name
    value.name = f"{name}_fp16"
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{name}_to_fp32")
    single = cast.outputs[0]
    single.name, single.dtype, single.shape = name, ir.DataType.FLOAT, value.shape
    graph.append(cast)
    return single
