"""One product for q, one for k, one for v: the form that ONNX Runtime's CPU provider wants.

Engines want one for all three, which reads its input once.

Legend: B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.attention import start_of_heads


class SplitGemm(ir.passes.InPlacePass):
    """An 8-bit Gemm of which only slices of heads are read becomes a Gemm for each slice, with the same codes.

    In ONNX Runtime a slice is a copy: without them a base model at 384 takes 2 % less of a core's time. The same for
    the first layer of an MLP, each part with its own Gelu and codes, gained nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [_sliced(node) for node in model.graph if node.op_type == "Gemm"]
        for each in found:
            if each is not None:
                _split(model.graph, each)
        model.graph.sort()
        return ir.passes.PassResult(model, modified=any(each is not None for each in found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sliced:
    """A Gemm, the DQs of its weight and bias, the Reshapes behind it, and the columns that each Slice takes of it."""

    gemm: ir.Node
    decoded: tuple[ir.Node, ...]
    reshapes: tuple[ir.Node, ...]
    slices: dict[ir.Node, slice]


def _sliced(gemm: ir.Node) -> _Sliced | None:
    decoded = [node for node in map(_decoded, gemm.inputs[1:]) if node is not None]
    heads, reshapes = gemm.outputs[0], []
    while [user.op_type for user, _ in heads.uses()] == ["Reshape"]:
        reshapes += [user for user, _ in heads.uses()]
        heads = reshapes[-1].outputs[0]
    slices = {user: _columns(user) for user, _ in heads.uses()}
    found = {user: columns for user, columns in slices.items() if columns is not None}
    if len(decoded) != 2 or not found or len(found) < len(slices) or heads.is_graph_output():
        return None
    return _Sliced(gemm=gemm, decoded=tuple(decoded), reshapes=tuple(reshapes), slices=found)


def _decoded(value: ir.Value | None) -> ir.Node | None:
    """The DQ that a value comes out of, if it is of constants."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node if all(each is not None and each.const_value is not None for each in node.inputs) else None


def _columns(node: ir.Node) -> slice | None:
    """Which of A·K columns a Slice of (B, T, A, K) by heads takes; None for another node, or with two extents open."""
    start, shape = start_of_heads(node), node.outputs[0].shape
    extents = [each for each in shape or () if isinstance(each, int)]
    if start is None or shape is None or len(shape) != 4 or len(extents) < 3:
        return None
    heads, width = shape[2], shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    return slice(start * width, (start + heads) * width)


def _split(graph: ir.Graph, found: _Sliced) -> None:
    weight = found.decoded[0].inputs[0]
    assert weight is not None
    layer = str(weight.name).rpartition(".")[0]
    for index, (cut, columns) in enumerate(found.slices.items()):
        name, old = f"{layer}.{index}", cut.outputs[0]
        parts = [_part(graph, each, columns, name) for each in found.decoded]
        gemm = edit.node(
            "Gemm", [found.gemm.inputs[0], *(each.outputs[0] for each in parts)], f"{name}_gemm", old.dtype
        )
        target = edit.integers(graph, [each if isinstance(each, int) else -1 for each in old.shape or ()])
        heads = edit.node("Reshape", [gemm.outputs[0], target], f"{name}_heads", old.dtype)
        edit.rename_to(heads.outputs[0], old)
        for each in (*parts, gemm, heads):
            graph.append(each)
    for node in (*found.slices, *reversed(found.reshapes), found.gemm, *found.decoded):
        graph.remove(node, safe=True)


def _part(graph: ir.Graph, decoded: ir.Node, columns: slice, name: str) -> ir.Node:
    """Some columns of a constant behind a DQ."""
    inputs = []
    for value in decoded.inputs:
        assert value is not None
        kind = str(value.name).rpartition(".")[2]
        inputs.append(edit.constant(graph, f"{name}.{kind}", edit.array_of(value)[..., columns]))
    stem, axis = str(inputs[0].name).removesuffix("_codes"), decoded.attributes["axis"].as_int()
    return edit.node("DequantizeLinear", inputs, f"{stem}_decoded", decoded.outputs[0].dtype, axis=axis)
