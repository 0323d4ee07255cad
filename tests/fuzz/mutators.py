"""Changes that keep a file in its format, so that most of them reach what is behind the first check.

A mutator takes a file's bytes, a source of chance and libFuzzer's own change of bytes, which it uses where there is no
structure to change.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ropevit_export.checkpoint import unpickle

Bytes = Callable[[bytes], bytes]
Mutate = Callable[[bytes, random.Random, Bytes], bytes]

_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 65536, 65537, 2**28, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400,
    0.5, -0.0, 1e-9, 5e-324, 1e16, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
_TEXTS = (
    "", "\0", "\n", "\x1b]0;t\x07", "\u202e", "\ud800", "[/x]", "../x", "/etc/passwd", "x" * 300, "batch", "%s", "{}",
    "9" * 5000, "1e999", "\N{BLACK STAR}", "\u2028", "²",
)  # fmt: skip


def any_bytes(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    return as_bytes(content)


def json_text(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    if chance.random() < 0.1:
        return as_bytes(content)
    try:
        tree = json.loads(content)
        return json.dumps(changed(tree, chance, as_bytes)).encode()
    except (ValueError, RecursionError):
        return as_bytes(content)


def toml_text(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    if chance.random() < 0.2:
        return as_bytes(content)
    try:
        tree = changed(tomllib.loads(content.decode()), chance, as_bytes)
        lines = tree.items() if isinstance(tree, dict) else [("x", tree)]
        return "".join(f"{json.dumps(str(key))} = {_toml(value)}\n" for key, value in lines).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return as_bytes(content)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value) if isinstance(value, (str, bool, int)) else json.dumps(str(value))


def changed(tree: Any, chance: random.Random, as_bytes: Bytes) -> Any:
    """A tree of JSON with one to three changes."""
    tree = [copy.deepcopy(tree)]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        holder, key = chance.choice(places)
        act = chance.randrange(7)
        if act == 0 and holder is not tree:
            del holder[key]
        elif act == 1:
            holder[key] = copy.deepcopy(_at(chance.choice(places)))
        elif act == 2 and isinstance(holder, dict):
            other = chance.choice((*_TEXTS, *(str(each) for _, each in places)))
            holder[other] = holder.pop(key)
        elif act == 2 and isinstance(holder, list):
            holder[key:key] = [holder[key]] * chance.choice((1, 2, 9, 1000))
        elif act == 3:
            value: Any = chance.choice((holder[key], []))
            for _ in range(chance.choice((1, 3, 100, 900))):
                value = [value] if chance.random() < 0.5 else {"x": value}
            holder[key] = value
        else:
            holder[key] = _scalar(holder[key], chance, as_bytes)
    return tree[0] if tree else None


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value in a tree."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in range(len(holder)) if isinstance(holder, list) else list(holder):
            yield holder, key
            if isinstance(holder[key], (list, dict)):
                waiting.append(holder[key])


def _at(place: tuple[Any, Any]) -> Any:
    holder, key = place
    return holder[key]


def _scalar(value: Any, chance: random.Random, as_bytes: Bytes) -> Any:
    if isinstance(value, str) and chance.random() < 0.4:
        return as_bytes(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    if isinstance(value, (int, float)) and chance.random() < 0.4:
        return chance.choice(
            (value + 1, value - 1, -value, value * 2, value * 3 + 1, float(max(-1e300, min(value, 1e300))))
        )
    return chance.choice((*_NUMBERS, *_NUMBERS, *_TEXTS, None, [], {}))


def safetensors(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    """The header as a tree, with its length before it; now and then the numbers behind it."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    act = chance.randrange(10)
    if act == 0 or length > len(content):
        return as_bytes(content)
    if act == 1:
        return content[: 8 + length] + as_bytes(rest)
    if act == 2:
        count = chance.choice((1, 4, 1000))
        rest = rest + bytes(count) if chance.random() < 0.5 else rest[:-count]
    made = json_text(header, chance, as_bytes)
    return struct.pack("<Q", len(made)) + made + rest


def archive(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    """A zip archive as torch.save writes them, its checksums right; mostly the pickle in it is changed."""
    if chance.random() < 0.1:
        return as_bytes(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as found:
            parts = [(info.filename, found.read(info)[:4096]) for info in found.infolist()]
    except Exception:  # of many kinds
        return as_bytes(content)
    if not parts:
        return as_bytes(content)
    at = next((at for at, (name, _) in enumerate(parts) if name.endswith("data.pkl")), 0)
    act = chance.randrange(12)
    if act < 8:
        parts[at] = parts[at][0], pickled(parts[at][1], chance, as_bytes)
    else:
        at = chance.randrange(len(parts))
        name, part = parts[at]
        if act == 8:
            parts[at] = name, as_bytes(part)
        elif act == 9:
            parts[at] = as_bytes(name.encode()).decode("utf-8", "replace").replace("\0", ""), part
        elif act == 10:
            del parts[at]
        else:
            parts.append((chance.choice((name, "x/data/7", "x/byteorder", "x/.data/serialization_id")), part))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for name, part in parts:
            out.writestr(zipfile.ZipInfo(name or "x"), part)
    return made.getvalue()


_GLOBALS = (
    *unpickle._FUNCTIONS, *unpickle._CLASSES, *sorted(unpickle._ARRAYS), "torch.FloatStorage", "torch.HalfStorage",
    "torch.float16", "torch.storage._load_from_bytes", "numpy.dtype", "a.B", "os.system", "builtins.getattr",
    "builtins.str", "collections.deque", "torch.nn.modules.linear.Linear",
)  # fmt: skip
# Opcodes without an argument.
_PLAIN = [each.code.encode("latin-1") for each in pickletools.opcodes if each.arg is None]


def pickled(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    """Opcodes left out, repeated, moved and put in; files of before PyTorch 1.6 are several pickles in a row."""
    if chance.random() < 0.05:
        return as_bytes(content)
    parts, rest = _opcodes(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(parts) + 1)
        end = min(len(parts), at + chance.choice((1, 1, 2, 5)))
        act = chance.randrange(6)
        if act == 0:
            del parts[at:end]
        elif act == 1:
            to = chance.randrange(len(parts) + 1)
            parts[to:to] = parts[at:end]
        elif act == 2 and at < len(parts) and len(parts[at]) > 1:
            parts[at] = parts[at][:1] + as_bytes(parts[at][1:])
        elif act == 3:
            parts[at:end] = [_opcode(chance)]
        else:
            parts[at:at] = [_opcode(chance) for _ in range(chance.choice((1, 2, 3)))]
    return b"".join(parts) + rest


def _opcodes(content: bytes) -> tuple[list[bytes], bytes]:
    """The opcodes of all pickles in a file, and what is behind the last."""
    parts: list[bytes] = []
    stream = io.BytesIO(content)
    start = 0
    while start < len(content):
        try:
            begins = [at for _, _, at in pickletools.genops(stream) if at is not None]
        except Exception:  # of many kinds
            break
        if not begins:
            break
        end = stream.tell()
        parts += [content[one:other] for one, other in zip(begins, [*begins[1:], end], strict=True)]
        start = end
    return parts, content[start:]


def _opcode(chance: random.Random) -> bytes:
    number = chance.choice(_NUMBERS[:15])
    text = chance.choice(_TEXTS).encode("utf-8", "replace")
    module, _, name = chance.choice(_GLOBALS).rpartition(".")
    small = bytes([chance.choice((0, 1, 2, 3, 5, 255))])
    return chance.choice(
        (
            *[chance.choice(_PLAIN)] * 6,
            *[f"c{module}\n{name}\n".encode()] * 3,
            *[b"h" + small, b"q" + small] * 2,
            b"X" + struct.pack("<I", len(text)) + text,
            b"K" + small,
            b"J" + struct.pack("<i", max(-(2**31), min(2**31 - 1, number))),
            b"\x8a\x09" + struct.pack("<q", max(-(2**63), min(2**63 - 1, number))) + b"\0",
            b"I%d\n" % number,
            b"G" + struct.pack(">d", chance.choice(_NUMBERS[17:])),
            b"r" + struct.pack("<I", min(2**32 - 1, abs(number))),
            b"j" + struct.pack("<I", min(2**32 - 1, abs(number))),
            b"p%d\n" % number,
            b"C" + bytes([len(text) & 255]) + text[:255],
            bytes([chance.choice(b"B\x8e\x8d\x96\x95\x8bT")]) + struct.pack("<Q", min(2**64 - 1, abs(number))),
            b"X\x07\0\0\0storageq\x01",
        )
    )


def onnx_file(content: bytes, chance: random.Random, as_bytes: Bytes) -> bytes:
    """Fields of the messages in it set to other values, left out and repeated."""
    if chance.random() < 0.1:
        return as_bytes(content)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        return as_bytes(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        message = chance.choice(list(_messages(model)))
        _change_field(message, chance.choice(message.DESCRIPTOR.fields), chance, as_bytes)
    made: bytes = model.SerializeToString()
    return made


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _change_field(message: Message, field: FieldDescriptor, chance: random.Random, as_bytes: Bytes) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if not field.is_repeated:
        if chance.random() < 0.2:
            message.ClearField(field.name)
        elif is_message:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _of_field(field, getattr(message, field.name), chance, as_bytes))
        return
    held = getattr(message, field.name)
    act = chance.randrange(4)
    if act == 0 and len(held):
        del held[chance.randrange(len(held))]
    elif is_message:
        new = held.add()
        if len(held) > 1:
            new.CopyFrom(held[chance.randrange(len(held) - 1)])
    elif act == 1 or not len(held):
        held.append(_of_field(field, field.default_value or 0, chance, as_bytes))
    else:
        at = chance.randrange(len(held))
        held[at] = _of_field(field, held[at], chance, as_bytes)


def _of_field(field: FieldDescriptor, value: Any, chance: random.Random, as_bytes: Bytes) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return as_bytes(value or b"")
        return chance.choice(_TEXTS).encode("utf-8", "replace").decode()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return float(chance.choice(_NUMBERS[17:]))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice([each.number for each in field.enum_type.values])
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    low = 0 if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64) else -(2 ** (bits - 1))
    return max(low, min(2 ** (bits - 1) - 1, int(chance.choice((*_NUMBERS[:15], value or 0)))))
