"""The builder's own report of what it made: one record a kernel, from the text that TensorRT-RTX logs."""

from __future__ import annotations

import re

from ropevit_export.errors import BackendError

_FIELDS = ("Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_FIELD = re.compile(rf"(?:^|, )({'|'.join(_FIELDS)}): ")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{}]*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[^\]]*)\], (?:Strides: [^{}]*?)?"
    r"Datatype: (?P<dtype>\w+), Format: (?P<format>[^{}]*?) \}"
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")

Layer = dict[str, object]


def parse(text: str) -> tuple[Layer, ...]:
    """Kernels in order: name, type, tensors read and written with shape and number format, ONNX nodes behind it.

    Raises BackendError where the text is not in the form that this reads: a silent gap would look like a small engine.
    """
    lines = [line for line in text.splitlines() if line.startswith("Name: ")]
    if not lines:
        raise BackendError("the builder logged no layers: is its profiling verbosity DETAILED?")
    return tuple(_layer(line) for line in lines)


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
