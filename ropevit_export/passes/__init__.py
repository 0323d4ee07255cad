"""Stage 5: the traced graph becomes small, strongly typed and legal.

Order matters: names and metadata go first so that equal constants look equal; simplification runs on float32, for which
every operator has a kernel to fold with; precision comes last so that nothing after it adds a float32 node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ropevit_export.passes.activations import ApartFromProducts
from ropevit_export.passes.attention import FuseAttention, FuseRotation
from ropevit_export.passes.constants import DeduplicateConstants
from ropevit_export.passes.heads import HeadsFirst
from ropevit_export.passes.mean import MeanBeforeLayer
from ropevit_export.passes.norms import ScaleAfterProduct
from ropevit_export.passes.operators import DOMAIN
from ropevit_export.passes.patches import PatchesToDepth
from ropevit_export.passes.places import probed, refuse_overflow
from ropevit_export.passes.precision import POLICIES, RetypeIo, ToHalf
from ropevit_export.passes.quantize.codes import Coding
from ropevit_export.passes.quantize.cpu import QuantizeAsItRuns
from ropevit_export.passes.quantize.engines import QuantizeLinear
from ropevit_export.passes.quantize.ranges import Session, balance, calibrate
from ropevit_export.passes.reshape import StaticReshape
from ropevit_export.passes.simplify import FoldSequences, Simplify
from ropevit_export.passes.swin import MeanAfterHead
from ropevit_export.passes.turn_by_head import TurnByHead
from ropevit_export.passes.verify import verify
from ropevit_export.values import Graph, PassRecord, Precision

if TYPE_CHECKING:
    from ropevit_export.values import Arrays

__all__ = [
    "DEFAULT",
    "Quantized",
    "apply",
    "convert",
    "for_onnxruntime",
    "for_openvino",
    "for_openvino_without_avx512",
    "probed",
    "refuse_overflow",
    "run",
    "run_quantized",
    "simplify",
]

DEFAULT: tuple[type[ir.passes.PassBase], ...] = (
    common.ClearMetadataAndDocStringPass,  # traces and paths of the machine that traced
    Simplify,
    FoldSequences,
    common.IdentityEliminationPass,
    common.LiftConstantsToInitializersPass,
    common.CommonSubexpressionEliminationPass,
    DeduplicateConstants,
    StaticReshape,  # reads the shapes that onnxsim has inferred
    common.RemoveUnusedNodesPass,
    common.RemoveUnusedOpsetsPass,
)


def run(graph: Graph, precision: Precision = "fp32") -> Graph:
    """A traced graph to a finished one of a precision."""
    return convert(simplify(graph), precision)


def simplify(graph: Graph) -> Graph:
    """All passes but the last, in float32, then the check that the result is legal (`verify.py`)."""
    graph = apply(graph, [step() for step in DEFAULT])
    verify(graph)
    return graph


def convert(graph: Graph, precision: Precision, io_dtype: str = "float32") -> Graph:
    """A finished float32 graph to another precision, checked again. The graph given is used up.

    `io_dtype`: of floating-point inputs and outputs, float32 or the format that the graph then computes in.
    """
    if precision == "fp32":
        return graph
    steps: list[ir.passes.PassBase] = [ToHalf(POLICIES[precision])]
    if precision == "fp16":  # in bfloat16 the convolution stays float32
        steps += [PatchesToDepth(), ScaleAfterProduct(), HeadsFirst(), MeanAfterHead()]
    steps += _clean()  # rounding can make tensors equal
    graph = _with_io_dtype(apply(graph, steps), io_dtype)
    verify(graph)
    return graph


def for_openvino(graph: Graph) -> Graph | None:
    """A finished graph of any precision as OpenVINO is fastest with it; None where nothing is turned. The graph given
    stays as it is.
    """
    turned = dataclasses.replace(graph, model=_separate(graph.model))
    turned = apply(turned, [TurnByHead(), MeanBeforeLayer(), common.RemoveUnusedNodesPass()])
    if not any(record.name == TurnByHead.__name__ and record.fired for record in turned.history):
        return None
    verify(turned, "openvino")
    return turned


def for_openvino_without_avx512(graph: Graph) -> Graph | None:
    """A finished float32 graph, in OpenVINO's form or the portable one, as OpenVINO is fastest with it on CPUs without
    AVX-512; None where it has no activation. The graph given stays as it is.
    """
    apart = dataclasses.replace(graph, model=_separate(graph.model))
    apart = apply(apart, [ApartFromProducts()])
    if not apart.history[-1].fired:
        return None
    verify(apart, "openvino-avx2")
    return apart


def for_onnxruntime(graph: Graph, precision: Precision, io_dtype: str = "float32") -> Graph | None:
    """A finished float32 graph in a precision as ONNX Runtime's own kernels are fastest with it, on a CPU in float32
    and on a GPU; None where it has no attention that they know. LayerNormalization stays one operator there, which has
    float32 statistics. The graph given stays as it is.
    """
    fast = dataclasses.replace(graph, model=_separate(graph.model))
    rounding = [] if precision == "fp32" else [ToHalf(POLICIES[precision]), *_clean()]
    fast = apply(fast, [*rounding, FuseRotation(), FuseAttention(), MeanBeforeLayer(), common.RemoveUnusedNodesPass()])
    if DOMAIN not in fast.model.opset_imports:
        return None
    fast = _with_io_dtype(fast, io_dtype)
    verify(fast, "onnxruntime")
    return fast


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """One calibration, two lowerings: what is fast in one runtime is slow or refused in the other.

    engines      Q/DQ around MatMul, float16 elsewhere: TensorRT-RTX, OpenVINO
    onnxruntime  linear layers whose inputs' ranges are measured as they run, attention as one operator, float32
                 elsewhere; None for fp8, which no CPU computes in
    """

    engines: Graph
    onnxruntime: Graph | None


def run_quantized(
    graph: Graph,
    coding: Coding,
    feeds: Iterable[Arrays],
    load: Callable[[ir.Model], Session],
    io_dtype: str = "float32",
) -> Quantized:
    """From the float32 graph that `simplify` gives, which is used up. `feeds`: what the graph takes, batch by batch;
    `load` makes a float32 model ready to run on them.
    """
    ranges = balance(graph.model, calibrate(graph.model, feeds, load))
    fast = None
    if coding == "int8":
        fast = dataclasses.replace(graph, model=_separate(graph.model))
        # Without MeanBeforeLayer: 8 bits' errors of many tokens average out, those of one don't.
        fast = apply(fast, [FuseRotation(), FuseAttention(), QuantizeAsItRuns(), common.RemoveUnusedNodesPass()])
        fast = _with_io_dtype(fast, io_dtype)
        verify(fast, "onnxruntime")
    # Equal tensors become one before 8-bit weights are there, which keep zero points of their own
    # (`codes.LayerEditor.decoded`).
    engines = apply(graph, [ToHalf(POLICIES["fp16"]), PatchesToDepth(), *_clean(), QuantizeLinear(ranges, coding)])
    engines = _with_io_dtype(engines, io_dtype)
    verify(engines)
    return Quantized(engines=engines, onnxruntime=fast)


def _with_io_dtype(graph: Graph, dtype: str) -> Graph:
    """The graph with inputs and outputs in a format, as its `io` says from then on. Passes before see float32 ones."""
    if dtype == graph.io.dtype:
        return graph
    graph = apply(graph, [RetypeIo(ir.DataType.from_numpy(np.dtype(dtype)))])
    return dataclasses.replace(graph, io=dataclasses.replace(graph.io, dtype=dtype))


def _separate(model: ir.Model) -> ir.Model:
    """A copy that shares constants only; those of `clone` share their values' types as well, which passes change."""
    copy = model.clone()
    values = [*copy.graph.inputs, *copy.graph.initializers.values()]
    for value in [*values, *(output for node in copy.graph for output in node.outputs)]:
        if value.dtype is not None:
            value.type = ir.TensorType(value.dtype)
    return copy


def _clean() -> list[ir.passes.PassBase]:
    return [DeduplicateConstants(), common.RemoveUnusedNodesPass()]


def apply(graph: Graph, steps: Sequence[ir.passes.PassBase]) -> Graph:
    """Run passes in order and record which of them changed the graph."""
    model, history = graph.model, list(graph.history)
    for step in steps:
        before = model.graph.num_nodes()
        result = step(model)
        model = result.model
        history.append(
            PassRecord(
                name=type(step).__name__,
                fired=result.modified,
                nodes_before=before,
                nodes_after=model.graph.num_nodes(),
            )
        )
    return dataclasses.replace(graph, model=model, history=tuple(history))
