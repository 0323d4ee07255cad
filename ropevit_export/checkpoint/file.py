"""Read a checkpoint: a file, shards that an index lists, or a folder of these. What a file is, its content decides.

    bytes → safetensors, or a pickle that runs nothing (`torch_file`, `unpickle`) → dictionaries of tensors (`contents`)

Which of the dictionaries is the model, `models.adopt` says.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from ropevit_export.checkpoint import torch_file
from ropevit_export.checkpoint.contents import Contents, contents
from ropevit_export.checkpoint.torch_file import STATE_DICT
from ropevit_export.checkpoint.unpickle import RefusedError
from ropevit_export.errors import CheckpointError, first_line
from ropevit_export.machine import shards
from ropevit_export.machine.files import regular, sha256
from ropevit_export.values import Checkpoint

# Files that are no checkpoint, by how they begin, and what to do.
_OTHERS = {
    b"version https://git-lfs": "it is a git-lfs pointer: run `git lfs pull` for the file itself",
    b"\x89HDF": "it is an HDF5 file, needs PyTorch's or safetensors",
    b"GGUF": "it is a GGUF file, needs PyTorch's or safetensors",
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
    b"\x93NUMPY": "it is a single NumPy array, needs PyTorch's or safetensors",
}


def read(path: Path) -> Checkpoint:
    """The dictionaries of tensors of a local file, of the shards that an index lists, or of the weights in a folder.

    Tensors are mapped into memory, not read. No code of a file runs. Raises CheckpointError.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: --weights takes auto, pretrained, random or an existing file.")
    path = shards.entry(path)
    known_by, found = _read_shards(path) if shards.is_index(path) else _read_file(path)
    if not found.dictionaries:
        raise CheckpointError(_nothing(path, found))
    return Checkpoint(
        dictionaries=found.dictionaries,
        unread=found.unread,
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
    """A shard of 16-bit tensors as they will be used, in float32, so that its file needn't be held in memory until the
    last shard is read. Small tensors keep their format: how they were rounded says how exact they are.
    """
    halves = (torch.float16, torch.bfloat16)
    if not any(each.dtype in halves for each in tensors.values()):
        return tensors
    large = 1 << 16
    return {
        name: each.float() if each.dtype in halves and each.numel() >= large else each.clone()
        for name, each in tensors.items()
    }


def _read_file(path: Path) -> tuple[str, Contents]:
    """SHA-256 of one file and what it holds."""
    try:
        with regular(path) as stream:
            start = stream.read(512)
        if fault := _fault(path, start):
            raise CheckpointError(f"{path} can't be read as a checkpoint: {fault}.")
        return sha256(path), contents(_content(path, start))
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
    return load_file(path) if start[8:9] == b"{" else torch_file.read(path, start)


def _fault(path: Path, start: bytes) -> str | None:
    """What the file is, where its first bytes tell that it is no checkpoint, or what of it is damaged."""
    if not start:
        return "it is empty"
    for beginning, sentence in _OTHERS.items():
        if start.startswith(beginning):
            return sentence
    if start.lstrip().lower().startswith((b"<html", b"<!doctype")):
        return "it is a web page, probably of a failed download"
    if start.startswith(b"PK"):
        return _damage(path)
    if start[8:9] == b"{":
        return _cut(path, struct.unpack("<Q", start[:8])[0])
    if not start.startswith(b"\x80") and b"ustar" not in start:
        return "it is neither a safetensors file nor one that PyTorch wrote, or it is damaged"
    return None


def _damage(path: Path) -> str | None:
    """torch doesn't look at the checksums of a zip archive; damage that leaves finite numbers would pass."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f"it is truncated or damaged ({first_line(error)})"
    return f"its part {part} is damaged" if part else None


def _cut(path: Path, header: int) -> str | None:
    return "it is truncated: its header is longer than the file" if header + 8 > path.stat().st_size else None
