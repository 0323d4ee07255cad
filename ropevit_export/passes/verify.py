"""What a finished graph is. Everything here has been seen to break a deployment or to slow one down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from ropevit_export.errors import PassError, first_line
from ropevit_export.passes.operators import DOMAIN
from ropevit_export.values import Form, Graph

# Control flow and scatters stop TensorRT; trigonometry means that a table was left to the runtime.
FORBIDDEN = frozenset({"If", "Loop", "Scan", "ScatterND", "ScatterElements", "Sin", "Cos", "Range", "Resize", "Einsum"})
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
_STANDARD = ("", "ai.onnx")
_DOMAINS: dict[Form, tuple[str, ...]] = {
    "portable": _STANDARD,
    "onnxruntime": (*_STANDARD, DOMAIN),
    "openvino": _STANDARD,
    "openvino-avx2": _STANDARD,
}


def verify(graph: Graph, form: Form = "portable") -> None:
    """Raise PassError with every fault found: operators, types, names, shapes, tables stored twice, ONNX's checker."""
    model = graph.model
    faults = [
        *_operator_faults(model, _DOMAINS[form]),
        *_type_faults(model),
        *_interface_faults(graph),
        *_duplicate_faults(model),
    ]
    if faults:
        raise PassError(f"the graph is not legal: {'; '.join(faults)}.")
    try:
        common.CheckerPass(full_check=True)(model)
    except Exception as error:  # onnx raises several unrelated classes
        raise PassError(f"onnx.checker refuses the graph: {first_line(error)}") from error


def _operator_faults(model: ir.Model, domains: Sequence[str]) -> list[str]:
    kinds = Counter(node.op_type for node in model.graph.all_nodes())
    foreign = {node.domain for node in model.graph.all_nodes()} - set(domains)
    faults = [f"{kinds[kind]} {kind}" for kind in sorted(FORBIDDEN & kinds.keys())]
    if foreign:
        faults.append(f"operators of {', '.join(sorted(foreign))}")
    if model.functions:
        faults.append(f"{len(model.functions)} local functions")
    return faults


def _type_faults(model: ir.Model) -> list[str]:
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    values += list(model.graph.initializers.values())
    faults = [f"{value.name} is complex" for value in values if value.dtype in _COMPLEX]
    return faults + [f"{value.name} is float64" for value in values if value.dtype == ir.DataType.DOUBLE]


def _interface_faults(graph: Graph) -> list[str]:
    faults = []
    inputs, outputs = graph.model.graph.inputs, graph.model.graph.outputs
    needed = {each.name: each.shape for each in graph.io.inputs}
    found = {
        value.name: tuple(extent if isinstance(extent, int) else str(extent) for extent in value.shape or ())
        for value in inputs
    }
    if list(found.items()) != list(needed.items()):
        faults.append(f"inputs are {found}, needed {needed}")
    names = [value.name for value in outputs]
    if names != list(graph.io.output_names):
        faults.append(f"outputs are {names}, needed {list(graph.io.output_names)}")
    types = {each.name: each.dtype for each in graph.io.inputs} | dict.fromkeys(graph.io.output_names, graph.io.dtype)
    for value in (*inputs, *outputs):
        dtype = None if value.dtype is None else str(value.dtype.numpy())
        if dtype != types.get(value.name or "", dtype):
            faults.append(f"{value.name} is {dtype}, needed {types[value.name or '']}")
    return faults


def _duplicate_faults(model: ir.Model) -> list[str]:
    """Large tensors with the same content: a table shared by the blocks must be stored once."""
    seen: dict[tuple[object, ...], str] = {}
    faults = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < 1 << 16:
            continue
        key = (
            tensor.dtype,
            tuple(tensor.shape),
            hash(tensor.numpy().reshape(-1)[:: 1 + tensor.size // 4096].tobytes()),
        )
        if key in seen and (tensor.numpy() == model.graph.initializers[seen[key]].const_value.numpy()).all():  # type: ignore[union-attr]
            faults.append(f"{name} and {seen[key]} are the same tensor stored twice")
        seen.setdefault(key, name)
    return faults
