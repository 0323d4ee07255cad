"""The graph's own number format: what the runtime computes in is written in the graph, not asked for at build time."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError

_HALF_MAX = float(np.finfo(np.float16).max)


class ToFloat16(ir.passes.InPlacePass):
    """Float32 weights, tables and values become float16; the graph's inputs and outputs keep their types, behind casts.

    What is computed from shapes and constants alone, the tables of a graph of dynamic size, stays float32 up to where
    it meets the image. What stays sane by the operators' own definitions: LayerNormalization computes mean and variance
    in float32 (`stash_type` 1), and runtimes accumulate MatMul and Softmax of float16 in float32. Constant tables are
    rounded from the float32 ones, an error of 2e-4, which is below that of the float16 queries they turn.

    Raises PassError where a weight is too large for float16, by name: it would become infinity.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        data = _data_nodes(graph)
        for value in list(graph.initializers.values()):
            if value.dtype == ir.DataType.FLOAT and any(node in data for node, _ in value.uses()):
                value.const_value = _half(value)
                value.dtype = ir.DataType.FLOAT16
        floats = [value for value in graph.inputs if value.dtype == ir.DataType.FLOAT]
        for node in data:
            _retype(node)
        for value in floats:
            _cast_input(graph, value)
        for node in list(graph):
            if node not in data and any(user in data for output in node.outputs for user, _ in output.uses()):
                _cast_table(graph, node, data)
        for index, value in enumerate(graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                graph.outputs[index] = _cast_output(graph, value)
        graph.sort()
        return ir.passes.PassResult(model, modified=True)


def _data_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """Nodes that the image's values reach, in order; a shape is not a value."""
    reached = set(graph.inputs)
    nodes: dict[ir.Node, None] = {}
    for node in graph:
        if node.op_type != "Shape" and not reached.isdisjoint(node.inputs):
            nodes[node] = None
            reached.update(node.outputs)
    return nodes


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
    users = [(user, index) for user, index in value.uses() if user.op_type != "Shape"]
    cast, half = _cast(value)
    for user, index in users:
        user.replace_input_with(index, half)
    graph.insert_before(graph[0], cast)


def _cast(value: ir.Value) -> tuple[ir.Node, ir.Value]:
    """A node that rounds the value to float16, and its output."""
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16}, name=f"{value.name}_to_fp16")
    half = cast.outputs[0]
    half.name, half.dtype, half.shape = f"{value.name}_fp16", ir.DataType.FLOAT16, value.shape
    return cast, half


def _cast_table(graph: ir.Graph, node: ir.Node, data: Container[ir.Node]) -> None:
    for value in node.outputs:
        users = [(user, index) for user, index in value.uses() if user in data]
        if value.dtype == ir.DataType.FLOAT and users:
            cast, half = _cast(value)
            for user, index in users:
                user.replace_input_with(index, half)
            graph.insert_after(node, cast)


def _cast_output(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = value.name
    value.name = f"{name}_fp16"
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=f"{name}_to_fp32")
    single = cast.outputs[0]
    single.name, single.dtype, single.shape = name, ir.DataType.FLOAT, value.shape
    graph.append(cast)
    return single
