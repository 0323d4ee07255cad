"""Queries, keys and values in the layout that TensorRT's fused attention reads.

Legend: B batch · T tokens · A heads · K head width · N of q, k, v: those that one product gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.attention import Attention, Rotation, attentions, rotations, start_of_heads


class HeadsFirst(ir.passes.InPlacePass):
    """q, k and v are permuted to (N, B, A, T, K) before they are cut apart and turned, not each for itself after.

    The same numbers. TensorRT-RTX then has one kernel that reads the product, turns q and k, and writes all three as
    its attention wants them; of slices it counts each whole, and of v it makes a copy of its own.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        turned = {each.turned: each for each in rotations(model)}
        found = [each for attention in attentions(model) if (each := _site(attention, turned)) is not None]
        for each in found:
            _rewrite(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Site:
    """heads: the Reshape of the product that gives q, k and v, or k and v, to (B, T, N·A, K). count: A."""

    attention: Attention
    rotation: Rotation | None
    heads: ir.Node
    count: int


def _site(attention: Attention, turned: dict[ir.Value, Rotation]) -> _Site | None:
    v = attention.v.producer()
    heads = None if v is None else edit.producer(v.inputs[0], "Reshape")
    if v is None or heads is None or attention.v.shape is None:
        return None
    count = attention.v.shape[2]
    start, target = start_of_heads(v), heads.inputs[1]
    if not isinstance(count, int) or start is None or target is None or target.const_value is None:
        return None
    if start not in (count, 2 * count) or edit.array_of(target).tolist()[2] != start + count:
        return None
    whole = heads.outputs[0]
    q, k = (_cut(each) for each in (attention.q, attention.k))
    rotation = turned.get(k[0])
    if rotation is not None and _cut(rotation.x) != (whole, 0):
        return None
    source = whole if rotation is None else rotation.turned
    places = [(source, 0), (source, count)] if start == 2 * count else [(source, 0)]
    if [q, k][-len(places) :] != places:
        return None
    return _Site(attention=attention, rotation=rotation, heads=heads, count=count)


def _cut(value: ir.Value) -> tuple[ir.Value, int]:
    """What a slice of heads is cut from, and where; the value itself, from 0, if it is none."""
    node = value.producer()
    start = None if node is None else start_of_heads(node)
    if node is None or start is None or node.inputs[0] is None:
        return value, 0
    return node.inputs[0], start


def _rewrite(graph: ir.Graph, site: _Site) -> None:
    attention, rotation, heads = site.attention, site.rotation, site.heads
    product, target = heads.inputs[0], heads.inputs[1]
    dtype = heads.outputs[0].dtype
    assert product is not None
    assert target is not None
    assert dtype is not None
    batch, tokens, total, width = edit.array_of(target).tolist()
    parts, name = total // site.count, str(attention.softmax.name)
    nodes: list[ir.Node] = []

    def put(kind: str, inputs: Sequence[ir.Value], which: str, **more: Any) -> ir.Value:
        nodes.append(edit.node(kind, inputs, f"{name}_{which}", dtype, **more))
        return nodes[-1].outputs[0]

    def reshaped(value: ir.Value, extents: Sequence[int], which: str) -> ir.Value:
        return put("Reshape", [value, edit.integers(graph, extents)], which)

    def part(value: ir.Value, index: int, which: str) -> ir.Value:
        chosen = edit.constant(graph, f"int64_scalar_{index}", np.array(index, np.int64))
        return put("Gather", [value, chosen], which, axis=0)

    all_BTNAK = reshaped(product, [batch, tokens, parts, site.count, width], "parts")
    all_NBATK = put("Transpose", [all_BTNAK], "heads_first", perm=[2, 0, 3, 1, 4])
    v = part(all_NBATK, parts - 1, "v")
    turning = all_NBATK
    if rotation is not None:
        edges = [edit.integers(graph, [each]) for each in (0, parts - 1, 0)]
        whole = put("Slice", [all_NBATK, *edges], "turning")
        pairs = reshaped(whole, [0, 0, 0, 0, 2, width // 2], "pairs")
        cut = ir.node("Split", [pairs], {"axis": 4, "num_outputs": 2}, num_outputs=2, name=f"{name}_halves")
        nodes.append(cut)
        for which, value in zip("ab", cut.outputs, strict=True):
            value.name, value.dtype = f"{name}_{which}", dtype
        a, b = cut.outputs
        swapped = put("Concat", [put("Neg", [b], "negative"), a], "swapped", axis=4)
        cos, sin = (_by_head(graph, each) for each in (rotation.cos, rotation.sin))
        sum_ = put("Add", [put("Mul", [pairs, cos], "cosines"), put("Mul", [swapped, sin], "sines")], "turned_pairs")
        turning = reshaped(sum_, [0, 0, 0, 0, width], "turned")
    k = put("Transpose", [part(turning, parts - 2, "k")], "k_transposed", perm=[0, 1, 3, 2])
    q = part(turning, 0, "q") if parts == 3 else None
    graph.insert_after(heads, nodes)
    scores, mixed = attention.softmax.inputs[0], edit.only_user(attention.softmax.outputs[0])
    first = None if scores is None else scores.producer()
    assert first is not None
    assert mixed is not None
    first.replace_input_with(1, k)
    mixed.replace_input_with(1, v)
    if q is not None:
        first.replace_input_with(0, q)


def _by_head(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """(T, 1, A or 1, 1, K/2) → (1, A or 1, T, 1, K/2), once a table."""
    order, name = [1, 2, 0, 3, 4], f"{table.name}_by_head"
    if table.const_value is not None:
        return edit.constant(graph, name, edit.array_of(table).transpose(order))
    for user, _ in table.uses():
        if user.name == name:
            return user.outputs[0]
    attributes: dict[str, Any] = {"perm": order}
    node, source = edit.node("Transpose", [table], name, table.dtype, **attributes), table.producer()
    if source is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(source, node)
    return node.outputs[0]
