"""LayerNorm behind the products that read it, in the form that TensorRT has fewest kernels and moves least for.

Legend: B batch · T tokens · I inputs · O outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layers

if TYPE_CHECKING:
    from ropevit_export.values import Array

_SINGLE = ir.DataType.FLOAT


class ScaleAfterProduct(ir.passes.InPlacePass):
    """LayerNorm before products: its mean and gain go into the weight, its deviation behind the product.

    norm(x) @ W + b = (x @ W') / deviation(x) + b', where W' = gain · W less every column's mean and b' = shift @ W + b:
    exact algebra. What is left of the norm is a number a token, which is computed in float32, as LayerNormalization
    does by itself; scale and bias, in float32 too, are steps of the product's own kernel. A normalised copy of the
    tokens, written and read again, is gone.

    For a float16 graph. W' is scaled down by a power of two so far that no product is larger than the largest value of
    x, which the format holds already.

    Of two products of one norm, a gated MLP's, the second reads normalised tokens: TensorRT-RTX joins products of one
    factor, and then moves what the joined one gives through memory. Two that are not joined it ends with their gate
    only where the batch is 1; elsewhere such a norm stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers = linear_layers(model)
        found = [each for node in model.graph if (each := _site(node, layers)) is not None]
        for each in found:
            _rewrite(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Site:
    """A norm, all products that read it, and what changes the tokens' order behind the first, if that is a merge's."""

    norm: ir.Node
    layers: Sequence[Linear]
    moves: tuple[ir.Node, ...] = ()


def _site(norm: ir.Node, layers: Sequence[Linear]) -> _Site | None:
    if norm.op_type != "LayerNormalization" or len(norm.inputs) != 3 or norm.attributes.get_int("axis", -1) != -1:
        return None
    normed = norm.outputs[0]
    found = [each for each in layers if each.x is normed and each.product.op_type == "MatMul"]
    if not 1 <= len(found) <= 2 or len(found) != len(normed.uses()):
        return None
    if any(value is None or value.const_value is None for value in norm.inputs[1:]):
        return None
    if any(len(each.weight.uses()) != 1 for each in found):  # another layer's too
        return None
    if len(found) == 2 and (norm.inputs[0] is None or norm.inputs[0].shape is None or norm.inputs[0].shape[0] != 1):
        return None
    return _Site(norm=norm, layers=found, moves=_moves(found[0]) if len(found) == 1 else ())


def _moves(layer: Linear) -> tuple[ir.Node, ...]:
    """What a merge of Swin's, a product without bias to half the channels, has between it and the next norm."""
    inputs, outputs = edit.array_of(layer.weight).shape
    if layer.bias is not None or inputs != 2 * outputs:
        return ()
    moves: list[ir.Node] = []
    result = layer.result
    while (user := edit.only_user(result)) is not None and _moves_tokens(user, outputs):
        moves.append(user)
        result = user.outputs[0]
    return tuple(moves)


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


@dataclass(kw_only=True, slots=True)
class _Chain:
    """Nodes to come into a graph, in order."""

    graph: ir.Graph
    name: str
    nodes: list[ir.Node] = field(default_factory=list)

    def put(
        self, kind: str, inputs: Sequence[ir.Value], which: str, dtype: ir.DataType | None = _SINGLE, **more: Any
    ) -> ir.Value:
        self.nodes.append(edit.node(kind, inputs, f"{self.name}_{which}", dtype, **more))
        return self.nodes[-1].outputs[0]

    def cast(self, value: ir.Value, which: str, dtype: ir.DataType | None = _SINGLE) -> ir.Value:
        assert dtype is not None
        return self.put("Cast", [value], which, dtype, to=dtype.value)

    def number(self, which: str, value: float) -> ir.Value:
        return edit.constant(self.graph, f"{self.name}.{which}", np.asarray(value, np.float32))


def _rewrite(graph: ir.Graph, site: _Site) -> None:
    norm, (first, *others) = site.norm, site.layers
    x, gain, shift = norm.inputs
    assert x is not None
    assert gain is not None
    assert shift is not None
    weight_IO, bias_O = _folded(first, gain, shift)
    down = 2.0 ** min(0, -math.ceil(math.log2(np.abs(weight_IO).sum(0).max() or 1.0)))
    before = _Chain(graph=graph, name=str(norm.outputs[0].name))
    offset, deviation = _halves(before, _moved(before, x, site), norm) if site.moves else _whole(before, x, norm)
    scale = before.put("Div", [before.number(f"up_{1 / down:g}", 1 / down), deviation], "scale")
    _replace(graph, first, x, weight_IO * down, bias_O, scale, site.moves)
    for layer in others:
        factor = before.put("Div", [before.number("up_1", 1.0), deviation], "factor")
        y = before.cast(before.put("Mul", [offset, factor], "normed_float32"), "normed", layer.weight.dtype)
        _replace(graph, layer, y, *_folded(layer, gain, shift))
    graph.insert_before(norm, before.nodes)
    graph.remove(norm, safe=True)
    for value in (gain, shift):
        edit.forget(graph, value)


def _folded(layer: Linear, gain: ir.Value, shift: ir.Value) -> tuple[Array, Array]:
    """A layer's weight and bias with the norm's gain, mean and shift in them, in float64."""
    weight_IO = edit.array_of(layer.weight).astype(np.float64)
    bias_O = edit.array_of(shift).astype(np.float64) @ weight_IO
    if layer.bias is not None:
        bias_O += edit.array_of(layer.bias).astype(np.float64)
    weight_IO = edit.array_of(gain).astype(np.float64)[:, None] * weight_IO
    return weight_IO - weight_IO.mean(0), bias_O


def _whole(chain: _Chain, x: ir.Value, norm: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Every token's offset from its mean, and its deviation."""
    last = edit.integers(chain.graph, [-1])
    exact = chain.cast(x, "float32")
    offset = chain.put("Sub", [exact, chain.put("ReduceMean", [exact, last], "mean", keepdims=1)], "offset")
    variance = chain.put("ReduceMean", [chain.put("Mul", [offset, offset], "square"), last], "variance", keepdims=1)
    return offset, _deviation(chain, variance, norm)


def _halves(chain: _Chain, x: ir.Value, norm: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The same over two halves of the channels, as many as the next stage's norm has: TensorRT-RTX joins reductions of
    one length only. The offset is of the first half.
    """
    last, half = edit.integers(chain.graph, [-1]), chain.number("half", 0.5)
    exact = chain.cast(x, "float32")
    split = ir.node("Split", [exact], {"axis": -1, "num_outputs": 2}, num_outputs=2, name=f"{chain.name}_halves")
    chain.nodes.append(split)
    for which, value in zip(("left", "right"), split.outputs, strict=True):
        value.name, value.dtype = f"{chain.name}_{which}", _SINGLE
    mean = chain.put("ReduceMean", [chain.put("Add", list(split.outputs), "sum"), last], "half_mean", keepdims=1)
    mean = chain.put("Mul", [mean, half], "mean")
    offsets = [chain.put("Sub", [each, mean], f"offset_{index}") for index, each in enumerate(split.outputs)]
    squares = [chain.put("Mul", [each, each], f"square_{index}") for index, each in enumerate(offsets)]
    variance = chain.put("ReduceMean", [chain.put("Add", squares, "squares"), last], "half_variance", keepdims=1)
    return offsets[0], _deviation(chain, chain.put("Mul", [variance, half], "variance"), norm)


def _deviation(chain: _Chain, variance: ir.Value, norm: ir.Node) -> ir.Value:
    epsilon = chain.number("epsilon", norm.attributes["epsilon"].as_float())
    return chain.put("Sqrt", [chain.put("Add", [variance, epsilon], "above_zero")], "deviation")


def _moved(chain: _Chain, x: ir.Value, site: _Site) -> ir.Value:
    """The product's input in the order that its result is brought to."""
    inputs = edit.array_of(site.layers[0].weight).shape[0]
    for index, node in enumerate(site.moves):
        name = f"moved_{index}"
        if node.op_type == "Transpose":
            x = chain.put("Transpose", [x], name, x.dtype, perm=list(node.attributes["perm"].as_ints()))
        else:
            x = chain.put("Reshape", [x, edit.integers(chain.graph, [*_target(node)[:-1], inputs])], name, x.dtype)
    return x


def _replace(
    graph: ir.Graph,
    layer: Linear,
    x: ir.Value,
    weight_IO: Array,
    bias_O: Array,
    scale: ir.Value | None = None,
    moves: Sequence[ir.Node] = (),
) -> None:
    """The layer as (x @ weight) · scale + bias, scaled and biased in float32 behind the moves; without a scale as
    x @ weight + bias.
    """
    stored = layer.weight.dtype
    assert stored is not None
    layer.product.replace_input_with(0, x)
    layer.weight.const_value = ir.tensor(weight_IO.astype(stored.numpy()), name=layer.weight.name)
    last = moves[-1] if moves else layer.product
    old = last.outputs[0] if moves else layer.result
    after = _Chain(graph=graph, name=layer.name)
    y = product = ir.Value(name=f"{layer.name}_product")  # stands in until the result's readers are moved
    if scale is not None:
        y = after.put("Mul", [after.cast(y, "product_float32"), scale], "scaled")
    added = bias_O.astype(np.float32 if scale is not None else stored.numpy())
    bias = edit.constant(graph, f"{layer.name}.shifted_bias", added)
    y = after.put("Add", [y, bias], "biased", bias.dtype)
    if scale is not None:
        y = after.cast(y, "result", stored)
    edit.rename_to(y, old)
    for user, index in list(product.uses()):
        user.replace_input_with(index, last.outputs[0])
    graph.insert_after(last, after.nodes)
    if layer.add is not None:
        graph.remove(layer.add, safe=True)
    edit.forget(graph, layer.bias)
