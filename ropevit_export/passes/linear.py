"""The linear layers of a graph: products with a constant weight.

Legend: I inputs · O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ropevit_export.passes.precision import data_nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """x @ weight_IO + bias_O: a MatMul and, where there is one, the Add behind it; or one Gemm."""

    product: ir.Node
    x: ir.Value
    weight: ir.Value
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def result(self) -> ir.Value:
        return (self.add or self.product).outputs[0]

    @property
    def name(self) -> str:
        return str(self.weight.name).removesuffix(".weight")


def linear_layers(model: ir.Model) -> list[Linear]:
    """In order, but for the one whose result is an output. A table that a graph computes from shapes has none."""
    found = [linear_layer(node) for node in data_nodes(model.graph)]
    return [each for each in found if each is not None and not _is_last(each)]


def readers(value: ir.Value, layers: Mapping[ir.Node, Linear]) -> list[Linear]:
    """The linear layers that read a value, through nodes that leave channels in place; none if others read it too."""
    reached, waiting, found, joins = {value}, [value], [], []
    while waiting:
        current = waiting.pop()
        for node, index in current.uses():
            if node in layers and index == 0:
                found.append(layers[node])
            elif _keeps_channels(node, current):
                joins += [node] if node.op_type == "Concat" else []
                waiting += [output for output in node.outputs if output not in reached]
                reached.update(node.outputs)
            else:
                return []
    foreign = [each for node in joins for each in node.inputs if each not in reached]
    if foreign or any(each.is_graph_output() for each in reached):
        return []
    return found


def linear_layer(node: ir.Node) -> Linear | None:
    """The layer whose product a node is."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight, *rest = node.inputs
    width = _constant_width(weight, 2)
    if x is None or weight is None or width is None or not _is_plain(node):
        return None
    if node.op_type == "Gemm":
        return Linear(product=node, x=x, weight=weight, add=None, bias=rest[0] if rest else None)
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add":
        for bias in users[0].inputs:
            if bias is not None and _constant_width(bias, 1) == width:
                return Linear(product=node, x=x, weight=weight, add=users[0], bias=bias)
    return Linear(product=node, x=x, weight=weight, add=None, bias=None)


def _constant_width(value: ir.Value | None, rank: int) -> int | None:
    """The last extent of a constant of that many axes."""
    if value is None or value.const_value is None or len(value.const_value.shape) != rank:
        return None
    return int(value.const_value.shape.numpy()[-1])


def _is_plain(node: ir.Node) -> bool:
    """Neither scaled nor transposed."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(plain[name] == attribute.value for name, attribute in node.attributes.items())


def _is_last(layer: Linear) -> bool:
    """Gives an output, as float32 or behind the cast of a float16 graph."""
    casts = [node.outputs[0] for node, _ in layer.result.uses() if node.op_type == "Cast"]
    return any(value.is_graph_output() for value in (layer.result, *casts))


def _keeps_channels(node: ir.Node, value: ir.Value) -> bool:
    """Channels are the last axis."""
    if node.op_type not in ("Slice", "Reshape", "Transpose", "Concat"):
        return False
    before, after = value.shape, node.outputs[0].shape
    if before is None or after is None or before[-1] != after[-1]:
        return False
    return node.op_type != "Transpose" or list(node.attributes["perm"].as_ints())[-1] == len(before) - 1
