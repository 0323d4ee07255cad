"""Where in the model a node of the graph is, and how large values get there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ropevit_export.errors import PassError
from ropevit_export.passes.precision import POLICIES, statistics
from ropevit_export.values import Precision

# A module's weight or bias, in whatever form a pass has left it.
_PARAMETER = re.compile(r"^(.+)\.(?:shifted_)?(?:weight|bias)(?:_[a-z0-9]+)?$")


def is_parameter(name: str) -> bool:
    """Whether an initializer is a module's weight or bias."""
    return _PARAMETER.search(name) is not None


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
            if value is not None and value.is_initializer() and (named := _PARAMETER.search(value.name or "")):
                last = named[1]
        found[node] = last
    return found


def probed(model: ir.Model) -> tuple[ir.Model, list[Probe]]:
    """A copy whose further outputs say how large each floating-point value gets, in the order of the graph; but for
    those that stay float32 in every precision.
    """
    copy = model.clone()
    graph = copy.graph
    probes: list[Probe] = []
    kept = statistics(graph)
    for node, place in places(graph).items():
        value = node.outputs[0]
        if value.dtype != ir.DataType.FLOAT or node in kept:
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


def block_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of a folded graph that `models.reference.block_values` has too, under the same names.

    Found by who reads what, not by order: conversion may sort nodes anew. A norm that a pass has taken into the
    products behind it has no value of its own.
    """
    norms: dict[str, ir.Node] = {}
    firsts: dict[str, ir.Value] = {}  # what the first product of a block's MLP reads
    for node in graph:
        name = _PARAMETER.sub(r"\1", _second_input(node))
        if node.op_type == "LayerNormalization" and (name not in norms or _tokens(node) != 1):
            norms[name] = node  # the last block's class token has a norm of its own as well
        elif node.op_type == "MatMul" and name.endswith((".mlp.fc1", ".mlp.gate")) and node.inputs[0] is not None:
            firsts[name.rpartition(".mlp")[0]] = node.inputs[0]
    found: dict[str, ir.Value] = {}
    for block in map("blocks.{}".format, itertools.count()):
        first, second = norms.get(f"{block}.norm1"), norms.get(f"{block}.norm2")
        middle = firsts.get(block) if second is None else second.inputs[0]
        if middle is None:
            break
        (total,) = (user for user, _ in middle.uses() if user.op_type == "Add")
        found |= {f"{block}.norm1": first.outputs[0]} if first is not None else {}
        found[f"{block}.attention"] = middle
        found |= {f"{block}.norm2": second.outputs[0]} if second is not None else {}
        found[f"{block}.mlp"] = total.outputs[0]
    return found


def _second_input(node: ir.Node) -> str:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return "" if value is None else value.name or ""


def _tokens(norm: ir.Node) -> object:
    shape = norm.outputs[0].shape
    return None if shape is None else shape[1]


# Images that nobody measured may reach further than the samples did.
HEADROOM = 2.0


def refuse_overflow(reached: Sequence[tuple[Probe, float]], precision: Precision) -> None:
    """Raise PassError that names the first place where values come near what the precision can hold."""
    policy = POLICIES[precision]
    for probe, largest in reached:
        if not largest * HEADROOM <= policy.largest:
            raise PassError(
                f"{probe.place} ({probe.operation}) reaches {largest:.3g} on the samples, {policy.precision} ends at "
                f"{policy.largest:g}: use --precision bf16 or fp32 for this model."
            )
