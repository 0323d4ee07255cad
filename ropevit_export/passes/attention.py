"""Rotation and attention as one operator each: the form that ONNX Runtime's CPU kernels want.

TensorRT-RTX wants the other one: it fuses the products and the Softmax itself, and knows neither operator. They are
ONNX Runtime's own: their standard namesakes, of opset 23, need a table for every image, and keep all scores in memory.

Legend: B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.operators import DOMAIN, VERSION


class FuseRotation(ir.passes.InPlacePass):
    """[a b]·cos + [-b a]·sin (`trace.attention.rotate`) becomes RotaryEmbedding.

    The operator has one table for all heads. Where each has its own, tokens and heads become one axis of positions: the
    same memory, and a row of the table for every token and head. q and k turn each for itself, since in ONNX Runtime a
    slice is a copy.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in rotations(model) if each.count is not None]
        for each in found:
            _fuse_rotation(model.graph, each)
        return _result(model, modified=bool(found))


class FuseAttention(ir.passes.InPlacePass):
    """MatMul, Softmax and MatMul between transposes become MultiHeadAttention on (B, T, A·K), which needs none."""

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
    def count(self) -> tuple[int, int] | None:
        """Heads of x and of the tables, where both are known."""
        heads = None if self.turned.shape is None else self.turned.shape[2]
        tables = {None if each.shape is None else each.shape[2] for each in (self.cos, self.sin)}
        own = tables.pop()
        return (heads, own) if isinstance(heads, int) and isinstance(own, int) and not tables else None


def rotations(model: ir.Model) -> list[Rotation]:
    """In order."""
    found = [_rotation(node) for node in model.graph if node.op_type == "Neg"]
    return [each for each in found if each is not None]


def _result(model: ir.Model, *, modified: bool) -> ir.passes.PassResult:
    if modified:
        model.opset_imports[DOMAIN] = VERSION
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
    assert found.count is not None
    heads, width = edit.extent(old, 2), edit.extent(old, 3)
    own = heads if found.count[1] > 1 else 1
    # (B, T, A·K) and a row a token, or (B, T·A, K) and a row a token and head
    rows, back = ([0, 0, heads * width], [0, 0, heads, width]) if own == 1 else ([0, -1, width], [0, -1, heads, width])
    first = edit.constant(graph, "int64_vector_0", np.zeros(1, np.int64))  # the position of the first row
    name = f"{old.name}_rotary"
    flat = edit.node("Reshape", [x, edit.integers(graph, rows)], f"{name}_rows", x.dtype)
    tables = [_rows(graph, each, own) for each in (found.cos, found.sin)]
    turned = edit.node("RotaryEmbedding", [flat.outputs[0], first, *tables], name, x.dtype, domain=DOMAIN)
    last = edit.node("Reshape", [turned.outputs[0], edit.integers(graph, back)], f"{name}_heads", x.dtype)
    edit.rename_to(last.outputs[0], old)
    flat.replace_input_with(0, x)
    for each in (flat, turned, last):
        graph.append(each)


def _rows(graph: ir.Graph, table: ir.Value, heads: int) -> ir.Value:
    """(T, 1, A or 1, 1, K/2) → (T·A or T, K/2), once a table, for `heads` heads."""
    width, name = edit.extent(table, -1), f"{table.name}_of_{heads}_heads"
    if table.const_value is not None:
        array = edit.array_of(table)
        rows = array.reshape(len(array), -1, width)
        return edit.constant(graph, name, np.tile(rows, (1, heads // rows.shape[1], 1)).reshape(-1, width))
    assert edit.extent(table, 2) == heads
    for user, _ in table.uses():
        if user.name == name:
            return user.outputs[0]
    node = edit.node("Reshape", [table, edit.integers(graph, [-1, width])], name, table.dtype)
    graph.append(node)
    return node.outputs[0]


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
    more = {"num_heads": heads, "scale": 1.0}  # the scale is in q
    fused = edit.node("MultiHeadAttention", inputs, f"{name}_attention", y.dtype, domain=DOMAIN, **more)
    edit.rename_to(fused.outputs[0], y)
    for each in (*flat, fused):
        graph.append(each)


def _only_user(node: ir.Node | None, kind: str) -> ir.Node | None:
    return None if node is None else edit.only_user(node.outputs[0], kind)


def _order(node: ir.Node | None) -> list[int]:
    return [] if node is None else list(node.attributes["perm"].as_ints())
