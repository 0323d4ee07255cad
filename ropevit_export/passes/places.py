"""Where in the model a node of the graph is, and how large values get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ropevit_export.errors import PassError
from ropevit_export.passes.precision import POLICIES
from ropevit_export.values import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """An extra output of a graph: the largest magnitude of what an operation gives."""

    output: str
    place: str
    operation: str


def places(graph: ir.Graph) -> dict[ir.Node, str]:
    """The module that each node belongs to, such as `blocks.7.mlp.fc1`: that of its parameter or, where it has none, of
    the last node before it that has one.
    """
    found: dict[ir.Node, str] = {}
    last = "input"
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and (value.name or "").endswith((".weight", ".bias")):
                last = (value.name or "").rpartition(".")[0]
        found[node] = last
    return found


def probed(model: ir.Model) -> tuple[ir.Model, list[Probe]]:
    """A copy whose further outputs say how large each floating-point value gets, in the order of the graph."""
    copy = model.clone()
    graph = copy.graph
    probes: list[Probe] = []
    for node, place in places(graph).items():
        value = node.outputs[0]
        if value.dtype != ir.DataType.FLOAT:
            continue
        magnitude = ir.node("Abs", [value])
        largest = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 0})
        output = largest.outputs[0]
        output.name, output.dtype, output.shape = f"reach_{len(probes)}", ir.DataType.FLOAT, ir.Shape(())
        magnitude.outputs[0].name = f"magnitude_{len(probes)}"
        for each in (magnitude, largest):
            graph.append(each)
        graph.outputs.append(output)
        probes.append(Probe(output=output.name, place=place, operation=node.op_type))
    return copy, probes


# Images that nobody measured may reach further than the samples did.
HEADROOM = 2.0


def refuse_overflow(reached: Sequence[tuple[Probe, float]], precision: Precision) -> None:
    """Raise PassError that names the first place where values come near what the precision can hold."""
    policy = POLICIES[precision]
    for probe, largest in reached:
        if not largest * HEADROOM <= policy.largest:
            raise PassError(
                f"{probe.place} ({probe.operation}) reaches {largest:.3g} on the samples, {policy.precision} ends at "
                f"{policy.largest:.0f}: use --precision bf16 or fp32 for this model."
            )
