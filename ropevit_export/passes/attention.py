"""Rotation and attention as one operator each: the form that ONNX Runtime's CPU kernels want.

TensorRT-RTX wants the other one: it fuses the products and the Softmax itself, and takes Attention in fewer types.

Legend: B batch · T tokens · A heads of q and k together · K head width.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OPSET = 23


class FuseRotation(ir.passes.InPlacePass):
    """[a b]·cos + [-b a]·sin (`trace.attention.rotate`) becomes RotaryEmbedding.

    The operator has one table for all heads. Where each head has its own, tokens and heads are laid out as one axis of
    positions: the same memory, and a table row for every token and head. Only where the batch is static: the tables,
    or the positions that choose from them, are one an image.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = [_fuse_rotation(model.graph, node) for node in list(model.graph) if node.op_type == "Neg"]
        return ir.passes.PassResult(model, modified=any(fused))


class FuseAttention(ir.passes.InPlacePass):
    """MatMul, Softmax and MatMul between transposes become Attention on (B, T, heads·K), which has none."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = [_fuse_attention(model.graph, node) for node in list(model.graph) if node.op_type == "Softmax"]
        return ir.passes.PassResult(model, modified=any(fused))


def _fuse_rotation(graph: ir.Graph, neg: ir.Node) -> bool:
    split = neg.inputs[0].producer() if neg.inputs[0] is not None else None
    concat = _only_user(neg.outputs[0], "Concat")
    turned = concat and _only_user(concat.outputs[0], "Mul")
    add = turned and _only_user(turned.outputs[0], "Add")
    if split is None or split.op_type != "Split" or not (concat and turned and add):
        return False
    pairs = split.inputs[0]
    plain = next((node for node in add.predecessors() if node is not turned), None)
    last = _only_user(add.outputs[0], "Reshape")
    if plain is None or plain.op_type != "Mul" or plain.inputs[0] is not pairs or last is None or pairs is None:
        return False
    cos, sin = plain.inputs[1], turned.inputs[1]
    before = pairs.producer()
    if cos is None or sin is None or cos.const_value is None or sin.const_value is None or before is None:
        return False
    shape = last.outputs[0].shape  # (B, T, A, K)
    source = before.inputs[0]
    if before.op_type != "Reshape" or shape is None or not shape.is_static() or len(shape) != 4 or source is None:
        return False
    extents = [int(each) for each in shape.numpy()]
    parts = _slices(last, source)
    if not parts:
        last.replace_input_with(0, _rotary(graph, last, source, (cos, sin), extents))
        return True
    for node, heads in parts:  # q and k each: turned together they would have to be copied apart again
        origin = source.producer()
        node.replace_input_with(0, source if origin is None or not _from_zero(origin) else origin.inputs[0])
        x = ir.node("Identity", [node.outputs[0]]).outputs[0]  # stands for the slice while its users are moved
        node.outputs[0].replace_all_uses_with(x)
        part = [*extents[:2], heads, extents[3]]
        y = _rotary(graph, node, node.outputs[0], (cos, sin), part, after=True)
        y.name, node.outputs[0].name = node.outputs[0].name, f"{node.outputs[0].name}_unturned"
        x.replace_all_uses_with(y)
    return True


def _rotary(
    graph: ir.Graph,
    place: ir.Node,
    x: ir.Value,
    tables: tuple[ir.Value, ir.Value],
    extents: list[int],
    *,
    after: bool = False,
) -> ir.Value:
    """x (B, T, A, K), turned, as (B, T·A, K) or, put `after` a place, in x's shape."""
    batch, tokens, heads, width = extents
    rows = [_table(graph, each, tokens, heads, batch) for each in tables]
    nodes = [
        _node("Reshape", [x, _list(graph, [batch, tokens * heads, width])], f"{place.name}_rows"),
    ]
    nodes.append(_node("RotaryEmbedding", [nodes[0].outputs[0], *rows], f"{place.name}_rotary", num_heads=1))
    if after:
        nodes.append(_node("Reshape", [nodes[1].outputs[0], _list(graph, extents)], f"{place.name}_turned"))
        nodes[-1].outputs[0].shape = ir.Shape(extents)
        graph.insert_after(place, nodes)
    else:
        graph.insert_before(place, nodes)
    return nodes[-1].outputs[0]


def _slices(last: ir.Node, source: ir.Value) -> list[tuple[ir.Node, int]]:
    """The slices of heads that a turned tensor is cut into, with the heads of each; none if anything else reads it."""
    users = [node for node, _ in last.outputs[0].uses()]
    heads = [node.outputs[0].shape for node in users]
    same = all(node.op_type == "Slice" and _axis(node) == 2 for node in users)
    if not same or any(shape is None or not isinstance(shape[2], int) for shape in heads):
        return []
    return [(node, int(shape[2])) for node, shape in zip(users, heads, strict=True) if shape is not None]  # type: ignore[arg-type]


def _axis(node: ir.Node) -> int | None:
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    return None if axes is None or axes.const_value is None else int(axes.const_value.numpy().item())


def _from_zero(node: ir.Node) -> bool:
    """A slice of heads that starts at the first: what is cut from it can be cut from its input."""
    start = node.inputs[1] if node.op_type == "Slice" and _axis(node) == 2 else None
    return start is not None and start.const_value is not None and not start.const_value.numpy().any()


def _table(graph: ir.Graph, table: ir.Value, tokens: int, heads: int, batch: int) -> ir.Value:
    """(T, 1, A or 1 or fewer, 1, K/2) → (B, T·A, K/2)."""
    name = f"{table.name}_rows_{heads}"
    if name not in graph.initializers:
        array = table.const_value.numpy()  # type: ignore[union-attr]
        array = array.reshape(tokens, -1, array.shape[-1])
        array = np.tile(array, (1, heads // array.shape[1], 1)).reshape(1, tokens * heads, -1)
        tensor = ir.tensor(np.ascontiguousarray(np.repeat(array, batch, 0)), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        graph.register_initializer(value)
    return graph.initializers[name]


def _fuse_attention(graph: ir.Graph, softmax: ir.Node) -> bool:
    scores = _producer(softmax.inputs[0], "MatMul")
    mixed = _only_user(softmax.outputs[0], "MatMul")
    back = mixed and _only_user(mixed.outputs[0], "Transpose")
    last = back and _only_user(back.outputs[0], "Reshape")
    if not (scores and mixed and back and last):
        return False
    sources = [_producer(value, "Transpose") for value in (*scores.inputs, mixed.inputs[1])]
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    if any(node is None or _order(node) != order for node, order in zip(sources, orders, strict=True)):
        return False
    if _order(back) != [0, 2, 1, 3]:
        return False
    parts = [node.inputs[0] for node in sources if node is not None]
    shape = parts[0].shape if parts[0] is not None else None
    if shape is None or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return False
    heads, width = shape[2], shape[3]
    flat = [_call(graph, last, "Reshape", [part, _list(graph, [0, -1, heads * width])]) for part in parts]
    y = _call(graph, last, "Attention", flat, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
    y.shape = last.outputs[0].shape
    last.outputs[0].replace_all_uses_with(y)
    y.name, last.outputs[0].name = last.outputs[0].name, y.name  # ranges go by name
    return True


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == kind else None


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _order(node: ir.Node | None) -> list[int]:
    return [] if node is None else list(node.attributes["perm"].as_ints())


def _call(graph: ir.Graph, before: ir.Node, kind: str, inputs: list[ir.Value | None], **attributes: float) -> ir.Value:
    node = _node(kind, inputs, f"{before.name}_{kind}_{len(graph)}", **attributes)
    graph.insert_before(before, node)
    return node.outputs[0]


def _node(kind: str, inputs: list[ir.Value | None], name: str, **attributes: float) -> ir.Node:
    node = ir.node(kind, inputs, attributes=attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
    return node


def _list(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    name = "to_" + "_".join(map(str, numbers)).replace("-", "m")
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        graph.register_initializer(value)
    return graph.initializers[name]
