"""Triton's `config.pbtxt`: a message as nested Python values, and its text. Names are Triton's (`ModelConfig`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

# Of a tensor, by a manifest's names.
DTYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True, slots=True)
class Name:
    """A value that is written without quotes: an enumeration's."""

    text: str


Value: TypeAlias = "str | int | bool | Name | Mapping[str, Value] | Sequence[Value]"


def text(message: Mapping[str, Value], indent: str = "") -> str:
    """In protobuf's text format. A sequence is a repeated field; map fields are messages with `key` and `value`."""
    lines = []
    for name, value in message.items():
        for each in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            lines.append(_field(name, each, indent))
    return "".join(lines)


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, Name):
        return f"{indent}{name}: {value.text}\n"
    if isinstance(value, bool):
        return f"{indent}{name}: {str(value).lower()}\n"
    if isinstance(value, (int, str)):
        # JSON's escapes are protobuf's, for what is not ASCII \uXXXX included.
        return f"{indent}{name}: {json.dumps(value)}\n"
    raise TypeError(f"{name} is {value!r}: a message holds texts, numbers, names and messages.")
