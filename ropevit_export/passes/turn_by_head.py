"""The rotation as OpenVINO's RoPE kernel wants it.

Legend: B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.attention import Rotation, rotations, start_of_heads

# Of what reads a turned q or k: to (B, A, T, K), and of k to (B, A, K, T).
_HEADS_FIRST, _WIDTH_BEFORE_TOKENS = [0, 2, 1, 3], [0, 2, 3, 1]
# OpenVINO looks for slices that end here, and for a Concat on axis -1, called so.
_END = 2**31 - 1


class TurnByHead(ir.passes.InPlacePass):
    """q and k go to (B, A, T, K) first, each for itself, and are turned there: x·cos + [-x₂ x₁]·sin, whose tables
    (1, A or 1, T, K) have every angle twice.

    The same numbers. OpenVINO then has one kernel for a rotation, which reads the product where it lies, and none for
    the permutations. The tables are twice as large.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in rotations(model) if _fits(each)]
        for each in found:
            _rewrite(model.graph, each)
        if found:
            model.graph.sort()
        return ir.passes.PassResult(model, modified=bool(found))


def _cuts(found: Rotation) -> list[ir.Node]:
    """What takes the heads of q, or of k, from a rotation of both."""
    return [node for node, _ in found.turned.uses() if start_of_heads(node) is not None]


def _fits(found: Rotation) -> bool:
    if found.count is None:
        return False
    parts = [cut.outputs[0] for cut in _cuts(found)] or [found.turned]
    readers = [node for part in parts for node, _ in part.uses()]
    orders = [list(node.attributes["perm"].as_ints()) if node.op_type == "Transpose" else [] for node in readers]
    if len(parts) > 1 and len(parts) != len(found.turned.uses()):
        return False
    own = found.count[1]
    return all(order in (_HEADS_FIRST, _WIDTH_BEFORE_TOKENS) for order in orders) and all(
        part.shape is not None and own in (1, part.shape[2]) for part in parts
    )


def _rewrite(graph: ir.Graph, found: Rotation) -> None:
    cuts = _cuts(found)
    origin = found.x.producer()
    # A slice of all heads that are turned need not be taken before one of q's or k's.
    x = origin.inputs[0] if origin is not None and start_of_heads(origin) == 0 else found.x
    for cut in cuts:
        cut.replace_input_with(0, x)
    for part in [cut.outputs[0] for cut in cuts] or [found.turned]:
        readers = [node for node, _ in part.uses()]
        by_head = _turned(graph, found, part if cuts else found.x, str(part.name))
        for reader in readers:
            if list(reader.attributes["perm"].as_ints()) == _HEADS_FIRST:
                reader.outputs[0].replace_all_uses_with(by_head)
            else:
                reader.replace_input_with(0, by_head)
                reader.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 3, 2])


def _turned(graph: ir.Graph, found: Rotation, x: ir.Value, name: str) -> ir.Value:
    """x (B, T, A, K) → (B, A, T, K), turned."""
    half = edit.extent(found.turned, 3) // 2

    def put(kind: str, inputs: Sequence[ir.Value], which: str, **more: Any) -> ir.Value:
        made = edit.node(kind, inputs, f"{name}_{which}", x.dtype, **more)
        graph.append(made)
        return made.outputs[0]

    def cut(start: int, end: int, which: str) -> ir.Value:
        return put("Slice", [by_head, *(edit.integers(graph, [each]) for each in (start, end, 3))], which)

    by_head = put("Transpose", [x], "by_head", perm=_HEADS_FIRST)
    swapped = put("Concat", [put("Neg", [cut(half, _END, "second")], "negative"), cut(0, half, "first")], "swapped",
                  axis=-1)  # fmt: skip
    cos, sin = (_full_width(graph, each) for each in (found.cos, found.sin))
    return put("Add", [put("Mul", [by_head, cos], "cosines"), put("Mul", [swapped, sin], "sines")], "turned")


def _full_width(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """(T, 1, A or 1, 1, K/2) → (1, A or 1, T, K), once a table."""
    order, name = [1, 2, 0, 3, 4], f"{table.name}_twice"
    if table.const_value is not None:
        once = edit.array_of(table).transpose(order).squeeze(3)
        return edit.constant(graph, name, np.concatenate([once, once], -1))
    for node in graph:
        if node.name == name:
            return node.outputs[0]
    turned: dict[str, Any] = {"perm": order}
    first = edit.node("Transpose", [table], f"{name}_by_head", table.dtype, **turned)
    axis = edit.integers(graph, [3])
    halves = edit.node("Squeeze", [first.outputs[0], axis], f"{name}_halves", table.dtype)
    both = edit.node("Concat", [halves.outputs[0], halves.outputs[0]], name, table.dtype, axis=-1)
    for node in (first, halves, both):
        graph.append(node)
    return both.outputs[0]
