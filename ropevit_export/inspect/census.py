"""What an artifact computes in, counted from the artifact itself: tools have written fp16 on engines that ran float32.

A product is a matrix product or a convolution: nearly all of the work, and what a precision is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from ropevit_export.errors import BackendError
from ropevit_export.formats import EIGHT_BITS, FORMATS, PRECISIONS
from ropevit_export.inspect import kernels
from ropevit_export.passes.places import places
from ropevit_export.passes.precision import POLICIES, data_nodes
from ropevit_export.values import Form, Precision

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "MultiHeadAttention", "DynamicQuantizeMatMul"})
_NOT_COMPUTED = frozenset({"Cast", "Constant", "Identity", "Shape", "QuantizeLinear", "DequantizeLinear"})
_ONNX = {ir.DataType[FORMATS[name].onnx]: name for name in PRECISIONS}
_ONNX[ir.DataType.UINT8] = "int8"  # its codes, moved by 128


@dataclass(kw_only=True, slots=True)
class Count:
    """Of one format. operations: nodes or kernels with such a result. products: of these, by what they multiply.

    bytes: a graph's weights, or what an engine's kernels read and write in one inference, but for tensors whose shape
    depends on the input.
    """

    operations: int = 0
    products: int = 0
    bytes: int = 0


@dataclass(kw_only=True, slots=True)
class Census:
    """Counts by format. `faults`: products that run in another format than the policy of the precision says."""

    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    faults: list[str] = field(default_factory=list)

    def rows(self) -> dict[str, dict[str, int]]:
        """Counts as plain numbers."""
        return {name: asdict(count) for name, count in self.counts.items()}

    def require(
        self, artifact: str, precision: Precision, promotions: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Raise BackendError where the artifact does not compute in what was asked for, or in what a device makes of it
        (`values.Plan.promotions`).
        """
        if self.faults or not self.counts[promotions.get(precision, precision)].products:
            reason = "; ".join(self.faults[:3]) or "no product runs in it"
            raise BackendError(
                f"{artifact} was asked for in {precision}, but {len(self.faults)} products are not: {reason}."
            )


def of_graph(path: Path, precision: Precision, form: Form = "portable") -> tuple[Census, Mapping[str, set[str]]]:
    """The census of an ONNX file, and what each product node may run in, by its name."""
    graph = ir.load(path).graph
    census = Census()
    wanted: dict[str, set[str]] = {}
    policy = POLICIES.get(precision)
    # Operators kept in float32 have a Cast before and after; where inputs and outputs have 16 bits, a builder may take
    # these casts into a product.
    io_formats = {_ONNX.get(value.dtype or ir.DataType.UNDEFINED, "") for value in graph.outputs}
    # What 8-bit linear layers leave: patches, attention, the head.
    rest = precision if precision not in EIGHT_BITS else "fp32" if form == "onnxruntime" else "fp16"
    computed = data_nodes(graph)
    for node, place in places(graph).items():
        result = _ONNX.get(node.outputs[0].dtype or ir.DataType.UNDEFINED)
        if result is None or node.op_type in _NOT_COMPUTED:
            continue
        if node.op_type not in _PRODUCTS:
            census.counts[result].operations += 1
            continue
        taken = _multiplied(node)
        census.counts[taken].operations += 1
        census.counts[taken].products += 1
        # What positions are computed from the size by stays float32 up to where it meets the image.
        kept = node not in computed or (policy is not None and policy.keeps(node))
        if kept:
            allowed = {"fp32"}
        elif _is_linear(node) and place != "head":
            allowed = {precision}
        else:
            allowed = {rest}
        wanted[node.name or ""] = allowed | io_formats if kept else allowed
        if taken not in allowed:
            census.faults.append(f"{place} ({node.op_type}) runs in {taken}")
    for value in graph.initializers.values():
        if (name := _ONNX.get(value.dtype or ir.DataType.UNDEFINED)) and value.const_value is not None:
            census.counts[name].bytes += value.const_value.nbytes
    return census, wanted


def _is_linear(node: ir.Node) -> bool:
    """Is a linear layer, in whatever form: with a constant weight, and no convolution but one that is decoded."""
    weight = node.inputs[1]
    source = None if weight is None else weight.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        codes = source.inputs[0]
        return codes is not None and codes.is_initializer()
    return weight is not None and weight.is_initializer() and node.op_type != "Conv"


def _multiplied(node: ir.Node) -> str:
    """The format of what a product multiplies; 8-bit values come out of a DequantizeLinear, or are made inside."""
    value = node.inputs[1 if node.op_type == "DynamicQuantizeMatMul" else 0]
    assert value is not None
    source = value.producer()
    if source is not None and source.op_type == "DequantizeLinear" and source.inputs[0] is not None:
        value = source.inputs[0]
    return _ONNX.get(value.dtype or ir.DataType.UNDEFINED, str(value.dtype))


def of_engine(layers: Iterable[Mapping[str, Any]], wanted: Mapping[str, set[str]]) -> Census:
    """The census of an engine from its builder's layer report. `wanted`: of the ONNX file it was built from."""
    census = Census()
    for kernel in kernels.of_layers(layers):
        for tensor in kernel.tensors:
            census.counts[tensor.format].bytes += tensor.bytes or 0
        behind = set().union(*(wanted.get(node, ()) for node in kernel.nodes))
        if not (behind and kernel.multiplies):
            census.counts[kernel.written].operations += 1
            continue
        taken = kernel.multiplied
        census.counts[taken].operations += 1
        census.counts[taken].products += 1
        if taken not in behind:
            census.faults.append(f"{kernel.name} runs in {taken}")
    return census
