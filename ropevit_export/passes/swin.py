"""Swin's merges and head, in the form that TensorRT has fewest kernels for.

Legend: B batch · T tokens · I inputs · O outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layer, linear_layers


class ScaleAfterProduct(ir.passes.InPlacePass):
    """LayerNorm before a product without a bias: its mean and gain go into the weight, its deviation behind it.

    norm(x) @ W = (x @ W') / deviation(x) + bias @ W, where W' = gain · W less every column's mean: exact algebra.
    The deviation is then one more step of the kernel that gathers the next stage's windows and normalises them: a
    kernel a merge less. It is computed in float32, as LayerNormalization does by itself, and over two halves of the
    channels: TensorRT-RTX joins reductions of one length only.

    For a float16 graph. W' is scaled down by a power of two so far that no product is larger than the largest value of
    x, which the format holds already.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in map(_merge, linear_layers(model)) if each is not None]
        for each in found:
            _rewrite(model.graph, each)
        if found:
            model.graph.sort()
        return ir.passes.PassResult(model, modified=bool(found))


class MeanAfterHead(ir.passes.InPlacePass):
    """The head of the tokens' mean becomes the mean of every token's head: exact algebra.

    The last LayerNorm is then one kernel where it was two, one of them with the mean, and the mean takes the head's
    bias and cast, which a GPU of SM 75 has a kernel for otherwise. The products of 49 tokens for one are 0.8 % more
    work for a tiny Swin at 224; what is read, the weights, stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        means = [node for node in model.graph if node.op_type == "ReduceMean"]
        done = [_head_first(model.graph, mean) for mean in means]
        return ir.passes.PassResult(model, modified=any(done))


def _head_first(graph: ir.Graph, mean: ir.Node) -> bool:
    x, user = mean.inputs[0], edit.only_user(mean.outputs[0])
    head = None if user is None else linear_layer(user)
    if x is None or x.shape is None or len(x.shape) != 3 or head is None or head.bias is None:
        return False
    tokens, axes = x.shape[1], mean.inputs[1]
    if not isinstance(tokens, int) or axes is None or axes.const_value is None:
        return False
    if edit.array_of(axes).tolist() != [1] or mean.attributes["keepdims"].as_int() != 0:
        return False
    name, stored, last = head.name, x.dtype, head.add or head.product
    inputs, outputs = edit.array_of(head.weight).shape
    value = x
    steps: list[tuple[str, list[ir.Value], str, dict[str, Any]]] = [
        ("Reshape", [edit.integers(graph, [-1, inputs])], "rows", {}),
        ("MatMul", [head.weight], "product", {}),
        ("Reshape", [edit.integers(graph, [-1, tokens, outputs])], "tokens", {}),
        ("Transpose", [], "by_class", {"perm": [0, 2, 1]}),  # a mean over the last axis takes what follows it
        ("ReduceMean", [edit.integers(graph, [2])], "mean", {"keepdims": 0}),
        ("Add", [head.bias], "biased", {}),
    ]
    for kind, others, which, attributes in steps:
        node = edit.node(kind, [value, *others], f"{name}_{which}", stored, **attributes)
        graph.insert_before(last, node)
        value = node.outputs[0]
    edit.rename_to(value, head.result)
    for each in (head.add, head.product, mean):
        if each is not None:
            graph.remove(each, safe=True)
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merge:
    """moves: what changes the tokens' order behind the product, down to the one that gives the result."""

    norm: ir.Node
    layer: Linear
    moves: tuple[ir.Node, ...]
    result: ir.Value


def _merge(layer: Linear) -> _Merge | None:
    norm, product = layer.x.producer(), layer.product
    if norm is None or norm.op_type != "LayerNormalization" or len(norm.inputs) != 3 or len(layer.x.uses()) != 1:
        return None
    inputs, outputs = edit.array_of(layer.weight).shape
    if product.op_type != "MatMul" or layer.bias is not None or inputs != 2 * outputs:
        return None
    moves: list[ir.Node] = []
    result = product.outputs[0]
    while (user := edit.only_user(result)) is not None and _moves_tokens(user, outputs):
        moves.append(user)
        result = user.outputs[0]
    return _Merge(norm=norm, layer=layer, moves=tuple(moves), result=result)


def _moves_tokens(node: ir.Node, channels: int) -> bool:
    """Channels stay the last axis, whole."""
    if node.op_type == "Transpose":
        order = list(node.attributes["perm"].as_ints())
        return order[-1] == len(order) - 1
    return node.op_type == "Reshape" and _target(node)[-1:] == [channels]


def _target(reshape: ir.Node) -> list[int]:
    extents = reshape.inputs[1]
    if extents is None or extents.const_value is None:
        return []
    return [int(each) for each in edit.array_of(extents)]


def _rewrite(graph: ir.Graph, merge: _Merge) -> None:
    layer, norm = merge.layer, merge.norm
    x, gain, shift = norm.inputs
    stored = layer.weight.dtype
    assert x is not None
    assert gain is not None
    assert shift is not None
    assert stored is not None
    weight_IO = edit.array_of(layer.weight).astype(np.float64)
    bias_O = edit.array_of(shift).astype(np.float64) @ weight_IO
    weight_IO = edit.array_of(gain).astype(np.float64)[:, None] * weight_IO
    weight_IO -= weight_IO.mean(0)
    down = 2.0 ** min(0, -math.ceil(math.log2(np.abs(weight_IO).sum(0).max() or 1.0)))

    single = ir.DataType.FLOAT

    def put(kind: str, inputs: Sequence[ir.Value], which: str, dtype: ir.DataType, **more: Any) -> ir.Value:
        made = edit.node(kind, inputs, f"{layer.name}_{which}", dtype, **more)
        graph.append(made)
        return made.outputs[0]

    def number(which: str, value: float) -> ir.Value:
        return edit.constant(graph, f"{layer.name}.{which}", np.asarray(value, np.float32))

    def moved(value: ir.Value, which: str) -> ir.Value:
        """In the order that the product's result is brought to."""
        for index, node in enumerate(merge.moves):
            name = f"{which}_moved_{index}"
            if node.op_type == "Transpose":
                value = put("Transpose", [value], name, stored, perm=list(node.attributes["perm"].as_ints()))
            else:
                target = edit.integers(graph, [*_target(node)[:-1], len(weight_IO)])
                value = put("Reshape", [value, target], name, stored)
        return value

    layer.product.replace_input_with(0, x)
    layer.weight.const_value = ir.tensor((weight_IO * down).astype(stored.numpy()), name=layer.weight.name)

    last = edit.integers(graph, [-1])
    exact = put("Cast", [moved(x, "input")], "float32", single, to=single.value)
    split = ir.node("Split", [exact], {"axis": -1, "num_outputs": 2}, num_outputs=2, name=f"{layer.name}_halves")
    graph.append(split)
    for which, value in zip(("left", "right"), split.outputs, strict=True):
        value.name, value.dtype = f"{layer.name}_{which}", single
    halves = list(split.outputs)
    mean = put("ReduceMean", [put("Add", halves, "sum", single), last], "half_mean", single, keepdims=1)
    mean = put("Mul", [mean, number("half", 0.5)], "mean", single)
    offsets = [put("Sub", [each, mean], f"offset_{index}", single) for index, each in enumerate(halves)]
    squares = [put("Mul", [each, each], f"square_{index}", single) for index, each in enumerate(offsets)]
    variance = put("ReduceMean", [put("Add", squares, "squares", single), last], "half_variance", single, keepdims=1)
    variance = put("Mul", [variance, number("half_scaled", 0.5 * down**2)], "variance", single)
    epsilon = number("epsilon", norm.attributes["epsilon"].as_float() * down**2)
    deviation = put("Sqrt", [put("Add", [variance, epsilon], "above_zero", single)], "deviation", single)

    old = merge.result
    product = ir.Value(name=f"{layer.name}_product")  # stands in for the result until its readers are moved
    y = put("Cast", [product], "product_float32", single, to=single.value)
    y = put("Div", [y, deviation], "scaled", single)
    bias = edit.constant(graph, f"{layer.name}.bias", bias_O.astype(np.float32))
    y = put("Cast", [put("Add", [y, bias], "shifted", single)], "result", stored, to=stored.value)
    cast = product.consumers()[0]
    edit.rename_to(y, old)
    cast.replace_input_with(0, old)
    graph.remove(norm, safe=True)
    for value in (gain, shift):
        edit.forget(graph, value)
