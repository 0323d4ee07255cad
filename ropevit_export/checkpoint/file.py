"""Read a checkpoint: a file, shards that an index lists, or a folder of these. What a file is, its content decides.

    bytes → safetensors, or a pickle that runs nothing (`torch_file`, `unpickle`) → dictionaries of tensors (`contents`)

Which of the dictionaries is the model, `models.adopt` says.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open

from ropevit_export.checkpoint import foreign, torch_file
from ropevit_export.checkpoint.contents import Contents, contents
from ropevit_export.checkpoint.foreign import STATE_DICT
from ropevit_export.checkpoint.unpickle import RefusedError
from ropevit_export.errors import CheckpointError, first_line
from ropevit_export.machine import shards
from ropevit_export.machine.files import regular, sha256
from ropevit_export.values import Checkpoint

_HALVES = (torch.float16, torch.bfloat16)
_LARGE = 1 << 17  # bytes
_PART = 1 << 22  # numbers


def read(path: Path) -> Checkpoint:
    """The dictionaries of tensors of a local file, of the shards that an index lists, or of the weights in a folder.

    Tensors are mapped into memory, not read; 16-bit ones of safetensors and of shards are float32. No code of a file
    runs. Raises CheckpointError.
    """
    if not path.exists():
        raise CheckpointError(
            f"no checkpoint at {path}: --weights takes auto, pretrained, random or an existing file; what is elsewhere "
            "has to be downloaded first."
        )
    path, beside = shards.entry(path)
    known_by, found = _read_shards(path) if shards.is_index(path) else _read_file(path)
    if not found.dictionaries:
        raise CheckpointError(_nothing(path, found))
    return Checkpoint(
        dictionaries=found.dictionaries,
        unread=found.unread,
        beside=beside,
        source=path.name,
        revision=None,
        sha256=known_by,
        trained=True,
    )


def _nothing(path: Path, found: Contents) -> str:
    for place, made_by in found.unread.items():
        if made_by.startswith("a whole pickled module"):
            at = f" under {place}" if place else ""
            return (
                f"{path} holds{at} {made_by}, whose class would have to be imported and run: {STATE_DICT}, and give "
                "that file."
            )
    held = ", ".join(f"{place or 'an object'} ({made_by})" for place, made_by in list(found.unread.items())[:3])
    return f"{path} holds no dictionary of tensors{f', but {held}' if held else ''}: {STATE_DICT}."


def _read_shards(index: Path) -> tuple[str, Contents]:
    """SHA-256 of all and their tensors. A shard that holds others than the index lists for it is of another run."""
    listed = shards.weight_map(index)
    hashes: dict[str, str] = {}
    out = Contents(dictionaries={"": {}})
    for part in shards.parts(index):
        hashes[part.name], found = _read_file(part)
        held = _let_go(found.dictionaries.get("", {}))
        if odd := sorted(held.keys() ^ {name for name, file in listed.items() if file == part.name}):
            raise CheckpointError(
                f"{part} and {index.name} differ in {', '.join(odd[:3])}: take all files from one checkpoint."
            )
        out.dictionaries[""] |= held
        out.unread.update(found.unread)
    return shards.combined(hashes), out


def _let_go(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """16-bit tensors as they will be used, in float32, so that their file needn't be held in memory until the last is
    read. Small tensors keep their format: how they were rounded says how exact they are.
    """
    if not any(each.dtype in _HALVES for each in tensors.values()):
        return tensors
    return {
        name: each.float() if each.dtype in _HALVES and each.nbytes >= _LARGE else each.clone()
        for name, each in tensors.items()
    }


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    """A part of the file after the other, each in a mapping of its own, which then goes."""
    with safe_open(path, "pt") as stream:
        sizes = {name: math.prod(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    parts: list[list[str]] = [[]]
    taken = 0
    for name, size in sizes.items():
        if taken > _PART:
            parts.append([])
            taken = 0
        parts[-1].append(name)
        taken += size
    out: dict[str, torch.Tensor] = {}
    for part in parts:
        with safe_open(path, "pt") as stream:
            out |= _let_go({name: stream.get_tensor(name) for name in part})
    return out


def _read_file(path: Path) -> tuple[str, Contents]:
    """SHA-256 of one file and what it holds."""
    try:
        with regular(path) as stream:
            start = stream.read(512)
        if fault := _fault(path, start):
            raise CheckpointError(f"{path} can't be read as a checkpoint: {fault}.")
        return sha256(path), contents(_content(path, start), path.stat().st_size)
    except CheckpointError:
        raise
    except RefusedError as error:
        raise CheckpointError(
            f"{path} can't be read as a checkpoint: it calls {error.called}, as files do that run code when they are "
            f"unpickled. Nothing of it was run. If you trust its maker, {STATE_DICT}."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged bytes lead a reader anywhere: IndexError, struct.error, UnicodeDecodeError
        raise CheckpointError(
            f"{path} can't be read as a checkpoint, it is truncated or damaged: {first_line(error)}"
        ) from error


def _content(path: Path, start: bytes) -> object:
    return _safetensors(path) if start[8:9] == b"{" else torch_file.read(path, start)


def _fault(path: Path, start: bytes) -> str | None:
    """What the file is, where its first bytes tell that it is no checkpoint, or what of it is damaged."""
    if start.startswith(b"PK"):
        return _damage(path)
    if start[8:9] == b"{":
        return _cut(path, struct.unpack("<Q", start[:8])[0])
    if start.startswith(b"\x80") or b"ustar" in start:
        return None
    return foreign.kind(start)


def _damage(path: Path) -> str | None:
    """torch doesn't look at the checksums of a zip archive; damage that leaves finite numbers would pass."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sentence := foreign.kind_of_archive(archive):
                raise CheckpointError(f"{path} {sentence}.")
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                return "its parts lie over one another"
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f"it is truncated or damaged ({first_line(error)})"
    return f"its part {part} is damaged" if part else None


def _cut(path: Path, header: int) -> str | None:
    return "it is truncated: its header is longer than the file" if header + 8 > path.stat().st_size else None
