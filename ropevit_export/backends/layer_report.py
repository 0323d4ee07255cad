"""The builder's own report of what it made: one record a kernel, from what TensorRT or TensorRT-RTX says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ropevit_export.errors import BackendError
from ropevit_export.formats import FORMATS

_FIELDS = ("Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_FIELD = re.compile(rf"(?:^|, )({'|'.join(_FIELDS)}): ")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{}]*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[^\]]*)\], (?:Strides: [^{}]*?)?"
    r"Datatype: (?P<dtype>\w+), Format: (?P<format>[^{}]*?) \}"
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")

# The types of the short form by how descriptions such as "Row major linear FP16 format" spell them: as we do, in
# capitals. The longest word first: UINT8 has INT8 in it.
_WORDS = {each.name.upper(): each.report for each in sorted(FORMATS.values(), key=lambda each: -len(each.name))}
Layer = dict[str, object]


def parse(text: str) -> tuple[Layer, ...]:
    """Kernels in order: name, type, tensors read and written with shape and number format, ONNX nodes behind it.

    Raises BackendError where the text is not in the form that this reads: a silent gap would look like a small engine.
    """
    lines = [line for line in text.splitlines() if line.startswith("Name: ")]
    if not lines:
        raise BackendError("the builder logged no layers: is its profiling verbosity DETAILED?")
    return tuple(_layer(line) for line in lines)


def from_json(text: str) -> tuple[Layer, ...]:
    """The same from TensorRT's engine inspector, in the form of release 10 ("Format/Datatype") or 11 (two fields)."""
    try:
        listed = json.loads(text)["Layers"]
        if any(isinstance(each, str) for each in listed):
            raise BackendError("the engine inspector lists names only: was profiling verbosity not DETAILED?")
        return tuple(_inspected(each) for each in listed)
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the engine inspector's answer is in an unknown form ({error!r}): {text[:120]}") from error


def _inspected(layer: Mapping[str, Any]) -> Layer:
    return {
        "name": layer["Name"],
        "type": layer["LayerType"],
        "inputs": [_inspected_tensor(each) for each in layer["Inputs"]],
        "constants": [_inspected_tensor(each) for each in layer.get("Constants", [])],
        "outputs": [_inspected_tensor(each) for each in layer["Outputs"]],
        "tactic": layer.get("TacticName", ""),
        "onnx_nodes": _ONNX_NODE.findall(layer.get("Metadata", "")),
    }


def _inspected_tensor(tensor: Mapping[str, Any]) -> dict[str, object]:
    both = tensor.get("Format/Datatype", "")
    dtype = tensor.get("Datatype") or tensor.get("DataType") or both
    named = next((short for word, short in _WORDS.items() if word in dtype.upper()), dtype)
    return {
        "name": tensor["Name"],
        "shape": list(tensor["Dimensions"]),
        "dtype": named,
        "format": tensor.get("Format", both),
    }


def _layer(line: str) -> Layer:
    parts = _FIELD.split(line)[1:]
    fields = dict(zip(parts[::2], parts[1::2], strict=True))
    missing = {"Name", "LayerType", "Inputs", "Outputs"} - fields.keys()
    if missing:
        raise BackendError(f"layer report without {', '.join(sorted(missing))}: {line[:120]}")
    return {
        "name": fields["Name"],
        "type": fields["LayerType"],
        "inputs": _tensors(fields["Inputs"]),
        "constants": _tensors(fields.get("Constants", "")),
        "outputs": _tensors(fields["Outputs"]),
        "tactic": fields.get("TacticName", ""),
        "onnx_nodes": _ONNX_NODE.findall(fields.get("Metadata", "")),
    }


def _tensors(text: str) -> list[dict[str, object]]:
    found = list(_TENSOR.finditer(text))
    if len(found) != text.count("{ Name: "):
        raise BackendError(f"layer report with tensors in an unknown form: {text[:120]}")
    return [
        {
            "name": tensor["name"],
            # an extent that depends on the input is not a number
            "shape": [int(extent) if extent.isdigit() else extent for extent in tensor["shape"].split(",") if extent],
            "dtype": tensor["dtype"],
            "format": tensor["format"],
        }
        for tensor in found
    ]
