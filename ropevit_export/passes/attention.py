"""Rotation and attention as one operator each: the form that ONNX Runtime's CPU kernels want.

TensorRT-RTX wants the other one: it fuses the products and the Softmax itself, and Attention takes fewer types there.

Legend: B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit

# The first with both operators. What else stands in these graphs means the same in it.
OPSET = 23


class FuseRotation(ir.passes.InPlacePass):
    """[a b]·cos + [-b a]·sin (`trace.attention.rotate`) becomes RotaryEmbedding.

    The operator has one table for all heads. Tokens and heads become one axis of positions instead: the same memory,
    and a row of the table for every token and head. q and k turn each for itself, since in ONNX Runtime a slice is a
    copy. Only where shapes are static: there is a table for every image.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in rotations(model) if each.is_constant]
        for each in found:
            _fuse_rotation(model.graph, each)
        return _result(model, modified=bool(found))


class FuseAttention(ir.passes.InPlacePass):
    """MatMul, Softmax and MatMul between transposes become Attention on (B, T, A·K), which needs none."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = attentions(model)
        for each in found:
            _fuse_attention(model.graph, each)
        return _result(model, modified=bool(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """softmax(q @ kᵀ) @ v: q, k, v and result (B, T, A, K), of which q and result may have fewer tokens.

    flat: the result as (B, T, A·K).
    """

    q: ir.Value
    k: ir.Value
    v: ir.Value
    softmax: ir.Node
    result: ir.Value
    flat: ir.Value


def attentions(model: ir.Model) -> list[Attention]:
    """Those without a bias or mask, in order."""
    found = [_attention(node) for node in model.graph if node.op_type == "Softmax"]
    return [each for each in found if each is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """x (B, T, A, K), its tables (T, 1, A or 1, 1, K/2), and the same x turned."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    turned: ir.Value

    @property
    def is_constant(self) -> bool:
        """Tables and shapes are."""
        shape = self.turned.shape
        tables = self.cos.const_value is not None and self.sin.const_value is not None
        return tables and shape is not None and len(shape) == 4 and shape.is_static()


def rotations(model: ir.Model) -> list[Rotation]:
    """In order."""
    found = [_rotation(node) for node in model.graph if node.op_type == "Neg"]
    return [each for each in found if each is not None]


def _result(model: ir.Model, *, modified: bool) -> ir.passes.PassResult:
    if modified:
        model.opset_imports[""] = max(model.opset_imports[""], OPSET)
        model.graph.sort()
    return ir.passes.PassResult(model, modified=modified)


def _rotation(neg: ir.Node) -> Rotation | None:
    """Reshape to pairs, Split, Neg, Concat, Mul, Mul, Add, Reshape, from the Neg in the middle."""
    split = edit.producer(neg.inputs[0], "Split")
    concat = _only_user(neg, "Concat")
    sines = _only_user(concat, "Mul")
    add = _only_user(sines, "Add")
    last = _only_user(add, "Reshape")
    first = None if split is None else edit.producer(split.inputs[0], "Reshape")
    if sines is None or add is None or last is None or first is None or split is None:
        return None
    cosines = next((node for node in add.predecessors() if node is not sines), None)
    if cosines is None or cosines.op_type != "Mul" or cosines.inputs[0] is not split.inputs[0]:
        return None
    x, cos, sin, turned = first.inputs[0], cosines.inputs[1], sines.inputs[1], last.outputs[0]
    if x is None or cos is None or sin is None:
        return None
    return Rotation(x=x, cos=cos, sin=sin, turned=turned)


def _fuse_rotation(graph: ir.Graph, found: Rotation) -> None:
    cuts = [node for node, _ in found.turned.uses()]
    if any(start_of_heads(node) is None for node in cuts):
        _turn(graph, found, found.turned, found.x)
        return
    origin = found.x.producer()
    x = origin.inputs[0] if origin is not None and start_of_heads(origin) == 0 else found.x
    for cut in cuts:
        cut.replace_input_with(0, x)
        _turn(graph, found, cut.outputs[0], cut.outputs[0])


def _turn(graph: ir.Graph, found: Rotation, old: ir.Value, x: ir.Value) -> None:
    """Put x (B, T, A, K), turned, in the place of `old`, which may be x itself."""
    assert old.shape is not None
    batch, tokens, heads, width = (int(extent) for extent in old.shape.numpy())
    positions = tokens * heads
    tables = [_table(graph, each, (batch, tokens, heads)) for each in (found.cos, found.sin)]
    name = f"{old.name}_rotary"
    flat = edit.node("Reshape", [x, edit.integers(graph, [batch, positions, width])], f"{name}_rows", x.dtype)
    turned = edit.node("RotaryEmbedding", [flat.outputs[0], *tables], name, x.dtype, num_heads=1)
    back = edit.node(
        "Reshape", [turned.outputs[0], edit.integers(graph, [batch, tokens, heads, width])], f"{name}_heads", x.dtype
    )
    edit.rename_to(back.outputs[0], old)
    flat.replace_input_with(0, x)
    for each in (flat, turned, back):
        graph.append(each)


def _table(graph: ir.Graph, table: ir.Value, extents: tuple[int, int, int]) -> ir.Value:
    """(T, 1, A or 1, 1, K/2), where A may be of q and k together, → (B, T·A, K/2)."""
    batch, tokens, heads = extents
    array = edit.array_of(table)
    rows = array.reshape(tokens, -1, array.shape[-1])
    rows = np.tile(rows, (1, heads // rows.shape[1], 1))
    rows = rows.reshape(1, tokens * heads, -1).repeat(batch, 0)
    return edit.constant(graph, f"{table.name}_of_{heads}_heads", rows)


def start_of_heads(node: ir.Node) -> int | None:
    """Where a slice of heads (axis 2) starts; None for another node."""
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    start, axes = node.inputs[1], node.inputs[3]
    if start is None or axes is None or start.const_value is None or axes.const_value is None:
        return None
    return int(edit.array_of(start).item()) if edit.array_of(axes).tolist() == [2] else None


def _attention(softmax: ir.Node) -> Attention | None:
    scores, mixed = edit.producer(softmax.inputs[0], "MatMul"), _only_user(softmax, "MatMul")
    back = _only_user(mixed, "Transpose")
    last = _only_user(back, "Reshape")
    if scores is None or mixed is None or back is None or last is None or _order(back) != [0, 2, 1, 3]:
        return None
    sources = [edit.producer(value, "Transpose") for value in (*scores.inputs, mixed.inputs[1])]
    if [_order(node) for node in sources] != [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]]:
        return None
    q, k, v = (None if node is None else node.inputs[0] for node in sources)
    if q is None or k is None or v is None:
        return None
    if q.shape is None or not isinstance(q.shape[2], int) or not isinstance(q.shape[3], int):
        return None
    return Attention(q=q, k=k, v=v, softmax=softmax, result=back.outputs[0], flat=last.outputs[0])


def _fuse_attention(graph: ir.Graph, found: Attention) -> None:
    assert found.q.shape is not None
    _, _, heads, width = found.q.shape
    assert isinstance(heads, int)
    assert isinstance(width, int)
    name, y, target = found.softmax.name, found.flat, edit.integers(graph, [0, -1, heads * width])
    flat = [
        edit.node("Reshape", [part, target], f"{name}_{which}", y.dtype)
        for part, which in ((found.q, "q"), (found.k, "k"), (found.v, "v"))
    ]
    inputs = [each.outputs[0] for each in flat]
    counts = {"q_num_heads": heads, "kv_num_heads": heads}
    fused = edit.node("Attention", inputs, f"{name}_attention", y.dtype, **counts, scale=1.0)  # the scale is in q
    edit.rename_to(fused.outputs[0], y)
    for each in (*flat, fused):
        graph.append(each)


def _only_user(node: ir.Node | None, kind: str) -> ir.Node | None:
    return None if node is None else edit.only_user(node.outputs[0], kind)


def _order(node: ir.Node | None) -> list[int]:
    return [] if node is None else list(node.attributes["perm"].as_ints())
