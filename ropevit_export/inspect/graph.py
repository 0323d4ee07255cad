"""What an ONNX file multiplies, at concrete sizes: FLOPs of its products, where its attentions are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ropevit_export.errors import BundleError, first_line
from ropevit_export.machine.files import require_regular
from ropevit_export.passes import operators
from ropevit_export.passes.places import places


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedNodes:
    """Of an ONNX file. attentions: block of every attention, by the name of its softmax (or of the whole of it, where
    it is one operator). products: names of matrix products and convolutions.
    """

    attentions: Mapping[str, str]
    products: Set[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedGraph:
    """An ONNX file at one size of its inputs; what has a name is by node name.

    attentions  see `NamedNodes`
    flops       of every matrix product and convolution, 2·M·N·K; other operations are not counted
    shapes      of a node's inputs and outputs, constants left out
    """

    nodes: int
    flops: Mapping[str, int]
    attentions: Mapping[str, str]
    shapes: Mapping[str, frozenset[tuple[int, ...]]]


def read(path: Path, inputs: Mapping[str, tuple[int, ...]]) -> SizedGraph:
    """`inputs`: the shape of every graph input. Weights are not loaded. Raises BundleError."""
    try:
        require_regular(path.stat(), path)
        model = ir.load(path)
    except Exception as error:  # protobuf's and the file system's, of many kinds
        raise BundleError(f"{path} is not an ONNX file that can be read: {first_line(error)}.") from error
    graph = model.graph
    if not all(isinstance(name, (str, NoneType)) for name in _names(graph)):
        raise BundleError(f"{path} is not an ONNX file that can be read: names in it are not UTF-8.")
    _require_inputs(path, graph, inputs)
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for value in graph.inputs:
        value.shape = ir.Shape(inputs[value.name or ""])
    with operators.known():
        graph = ShapeInferencePass()(model).model.graph
    flops, shapes = {}, {}
    for node in graph:
        name = node.name or ""
        if _is_product(node):
            try:
                flops[name] = _FLOPS[node.op_type](node)
            except IndexError as error:
                raise BundleError(f"{path}: its {node.op_type} {name} has too few inputs, outputs or axes.") from error
        shapes[name] = frozenset(
            shape
            for value in (*node.inputs, *node.outputs)
            if (shape := _shape(value)) is not None and not _constant(value)
        )
    return SizedGraph(nodes=len(graph), flops=flops, attentions=_attentions(graph), shapes=shapes)


def _names(graph: ir.Graph) -> Iterator[object]:
    """Protobuf gives text that is not UTF-8 as bytes."""
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        yield value.name
    for node in graph:
        yield from (node.name, node.op_type, node.domain, *(value.name for value in node.outputs), *node.attributes)


def _require_inputs(path: Path, graph: ir.Graph, inputs: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BundleError for a graph that is not the manifest's, or has operators that nobody here knows."""
    if not len(graph) or {value.name for value in graph.inputs} != inputs.keys():
        found = ", ".join(value.name or "?" for value in graph.inputs) or "none"
        raise BundleError(
            f"{path} is another graph than its manifest says: {len(graph)} nodes, inputs {found}, where the manifest "
            f"has {', '.join(inputs)}."
        )
    strangers = sorted({f"{node.domain}.{node.op_type}" for node in graph if node.domain not in _DOMAINS})
    if strangers:
        raise BundleError(f"{path} has operators that no runtime here knows: {', '.join(strangers[:3])}.")


def named(path: Path) -> NamedNodes:
    graph = ir.load(path).graph
    return NamedNodes(
        attentions=_attentions(graph), products=frozenset(node.name or "" for node in graph if _is_product(node))
    )


def _attentions(graph: ir.Graph) -> Mapping[str, str]:
    return {
        node.name or "": _block(place)
        for node, place in places(graph).items()
        if node.op_type in ("Softmax", "Attention", "MultiHeadAttention")
    }


def _is_product(node: ir.Node) -> bool:
    return node.op_type in _FLOPS and node.domain in ("", operators.DOMAIN)


def _block(place: str) -> str:
    """`blocks.3` of `blocks.3.attention.qkv`."""
    parts = place.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else place


def _matmul(node: ir.Node) -> int:
    return 2 * math.prod(_known(node, node.outputs[0])) * _known(node, node.inputs[0])[-1]


def _gemm(node: ir.Node) -> int:
    transposed = node.attributes.get_int("transA", 0)
    return 2 * math.prod(_known(node, node.outputs[0])) * _known(node, node.inputs[0])[0 if transposed else 1]


def _conv(node: ir.Node) -> int:
    return 2 * math.prod(_known(node, node.outputs[0])) * math.prod(_known(node, node.inputs[1])[1:])


def _attention(node: ir.Node) -> int:
    """Scores and values; q, k, v are (batch, heads, tokens, width) or (batch, tokens, heads · width)."""
    q, k, v = (_known(node, value) for value in node.inputs[:3])
    if len(q) == 3:
        both = node.attributes.get_int("num_heads", 1)
        q, k, v = (_split(each, node.attributes.get_int(f"{name}_num_heads", both))
                   for each, name in ((q, "q"), (k, "kv"), (v, "kv")))  # fmt: skip
    return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])


def _split(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    batch, tokens, channels = shape
    return batch, heads, tokens, channels // heads


# ONNX's own, and ONNX Runtime's.
_DOMAINS = ("", "ai.onnx", operators.DOMAIN)
_FLOPS = {"MatMul": _matmul, "DynamicQuantizeMatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
_FLOPS |= {"Attention": _attention, "MultiHeadAttention": _attention}


def _known(node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
    shape = _shape(value)
    if shape is None:
        name = "" if value is None else value.name
        raise BundleError(f"shape inference finds no shape for {name} of {node.op_type} {node.name}: no FLOPs of it.")
    return shape


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(extent) for extent in value.shape)  # type: ignore[arg-type]
