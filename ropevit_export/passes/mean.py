"""The mean over tokens, before the last layer of the last block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layer


class MeanBeforeLayer(ir.passes.InPlacePass):
    """mean(x + fc2(h)) becomes mean(x) + fc2(mean(h)), for models that average the last block's tokens and have no norm
    between: exact algebra.

    fc2 then runs on one token: 1.9 % less work for a small EVA-02, 2.7 % for a base ViT with GELU. Engines keep the
    graph as it was: TensorRT-RTX has two or three kernels more with it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for node in model.graph if (each := _mean(node)) is not None]
        for each in found:
            _rewrite(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mean:
    """node: of x + layer, both (B, T, C), or of the `part` of its tokens."""

    node: ir.Node
    part: ir.Node | None
    total: ir.Node
    x: ir.Value
    layer: Linear


def _mean(node: ir.Node) -> _Mean | None:
    if node.op_type != "ReduceMean" or not _over_tokens(node):
        return None
    part = edit.producer(node.inputs[0], "Slice")
    total = edit.producer(node.inputs[0] if part is None else part.inputs[0], "Add")
    if total is None or (part is not None and not _of_tokens(part)):
        return None
    if not all(_is_read_once(each.outputs[0]) for each in (total, part) if each is not None):
        return None
    for x, result in (total.inputs, reversed(total.inputs)):
        layer = _layer(result)
        if x is not None and layer is not None:
            return _Mean(node=node, part=part, total=total, x=x, layer=layer)
    return None


def _over_tokens(mean: ir.Node) -> bool:
    """Of (B, T, C) over T."""
    x = mean.inputs[0]
    return x is not None and x.shape is not None and len(x.shape) == 3 and _is_one(mean.inputs[1])


def _of_tokens(part: ir.Node) -> bool:
    """Whether a slice leaves channels as they are."""
    return len(part.inputs) > 3 and _is_one(part.inputs[3])


def _is_one(axes: ir.Value | None) -> bool:
    return axes is not None and axes.const_value is not None and edit.array_of(axes).tolist() == [1]


def _is_read_once(value: ir.Value) -> bool:
    return edit.only_user(value) is not None and not value.is_graph_output()


def _layer(result: ir.Value | None) -> Linear | None:
    """The layer that gives a value which nothing else reads."""
    node = None if result is None or not _is_read_once(result) else result.producer()
    if node is None:
        return None
    products = [node, *(value.producer() for value in node.inputs if value is not None)]
    layers = (linear_layer(each) for each in products if each is not None and each.op_type == "MatMul")
    return next((each for each in layers if each is not None and each.result is result), None)


def _rewrite(graph: ir.Graph, found: _Mean) -> None:
    node, layer = found.node, found.layer
    keepdims = node.attributes["keepdims"].as_int()

    def put(kind: str, inputs: list[ir.Value | None], which: str, **attributes: Any) -> ir.Value:
        made = edit.node(kind, inputs, f"{node.outputs[0].name}_{which}", node.outputs[0].dtype, **attributes)
        graph.insert_before(node, made)
        return made.outputs[0]

    def mean(value: ir.Value, which: str) -> ir.Value:
        if found.part is not None:
            value = put("Slice", [value, *found.part.inputs[1:]], f"{which}_part")
        return put("ReduceMean", [value, node.inputs[1]], which, keepdims=keepdims)

    given = put("MatMul", [mean(layer.x, "inner"), layer.weight], "product")
    if layer.bias is not None:
        given = put("Add", [given, layer.bias], "biased")
    edit.rename_to(put("Add", [mean(found.x, "outer"), given], "sum"), node.outputs[0])
    replaced = (node, found.part, found.total, layer.add, layer.product)
    for each in replaced:
        if each is not None:
            graph.remove(each, safe=True)
