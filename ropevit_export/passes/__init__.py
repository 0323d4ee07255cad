"""Stage 5: the traced graph becomes small, strongly typed and legal.

Order matters: names and metadata go first so that equal constants look equal; simplification runs on float32, for which
every operator has a kernel to fold with; precision comes last so that nothing after it adds a float32 node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from ropevit_export.passes.places import probed, refuse_overflow
from ropevit_export.passes.precision import POLICIES, ToHalf
from ropevit_export.passes.reshape import StaticReshape
from ropevit_export.passes.simplify import FoldSequences, Simplify
from ropevit_export.passes.verify import verify
from ropevit_export.values import Graph, PassRecord, Precision

__all__ = ["DEFAULT", "apply", "convert", "probed", "refuse_overflow", "run", "simplify"]

DEFAULT: tuple[type[ir.passes.PassBase], ...] = (
    common.ClearMetadataAndDocStringPass,  # traces and paths of the machine that traced
    Simplify,
    FoldSequences,
    common.IdentityEliminationPass,
    common.LiftConstantsToInitializersPass,
    common.CommonSubexpressionEliminationPass,
    common.DeduplicateHashedInitializersPass,  # onnxsim gives every node its own copy of small constants
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


def convert(graph: Graph, precision: Precision) -> Graph:
    """A finished float32 graph to another precision, checked again. The graph given is used up."""
    if precision == "fp32":
        return graph
    steps = [ToHalf(POLICIES[precision]), common.DeduplicateHashedInitializersPass()]  # rounding can make tensors equal
    graph = apply(graph, steps)
    verify(graph)
    return graph


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
