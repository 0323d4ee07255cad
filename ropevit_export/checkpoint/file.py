"""Read a checkpoint, in one file or in shards: safetensors, or PyTorch pickles that hold nothing but tensors."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from ropevit_export.errors import CheckpointError, first_line
from ropevit_export.machine import shards
from ropevit_export.machine.files import sha256
from ropevit_export.values import Checkpoint

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Where training scripts put the weights, in the order in which they are taken.
_CONTAINERS = ("model", "state_dict", "model_ema", "module")
# What DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")


def read(path: Path) -> Checkpoint:
    """The tensors of a local `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file.

    An `.index.json` stands for the shards that it lists, a folder for the weights or the index in it.
    Pickles are read with `weights_only=True`: no code of theirs runs. Raises CheckpointError.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: --weights takes auto, pretrained, random or an existing file.")
    path = shards.entry(path)
    known_by, tensors = _read_shards(path) if shards.is_index(path) else _read_file(path)
    return Checkpoint(tensors=_unwrapped(tensors), source=path.name, revision=None, sha256=known_by, trained=True)


def _read_shards(index: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """SHA-256 of all and their tensors. A shard that holds others than the index lists for it is of another run."""
    listed = shards.weight_map(index)
    hashes: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    for part in shards.parts(index):
        hashes[part.name], held = _read_file(part)
        if odd := sorted(held.keys() ^ {name for name, file in listed.items() if file == part.name}):
            raise CheckpointError(
                f"{part} and {index.name} differ in {', '.join(odd[:3])}: take all files from one checkpoint."
            )
        tensors |= held
    return shards.combined(hashes), tensors


def _read_file(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """SHA-256 and tensors of one file."""
    if path.suffix not in _SUFFIXES:
        raise CheckpointError(
            f"{path} is not a checkpoint file: needs one of {', '.join(_SUFFIXES)}, .index.json or a folder."
        )
    if fault := _first_bytes_fault(path):
        raise CheckpointError(f"{path} can't be read as a checkpoint: {fault}.")
    try:
        known_by = sha256(path)
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged bytes lead torch's reader anywhere: IndexError, struct.error, AssertionError
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to switch the safety off
            reason = "not a PyTorch file, or one that holds more than tensors and would run code when read"
        raise CheckpointError(f"{path} can't be read as a checkpoint, it is truncated or not one: {reason}") from error
    return known_by, _tensors(path, content)


def _first_bytes_fault(path: Path) -> str | None:
    """What the file is, where its first bytes tell that it is something else, or which part of a zip is damaged."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        if not start:
            return "it is empty"
        if start.startswith(b"version https://git-lfs"):
            return "it is a git-lfs pointer: run `git lfs pull` for the file itself"
        if start.lstrip().lower().startswith((b"<html", b"<!doctype")):
            return "it is a web page, probably of a failed download"
        # torch doesn't look at checksums; damage that leaves finite numbers would pass
        damaged = zipfile.ZipFile(path).testzip() if start.startswith(b"PK") else None
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"it is truncated or damaged ({error})"
    return f"its part {damaged} is damaged" if damaged else None


def _unpickle(path: Path) -> object:
    # Official training checkpoints carry their command line beside the weights; a Namespace only holds values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written by torch < 1.6


def _tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, needs a dictionary of tensors.")
    named = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not named or len(named) != len(content):
        others = ", ".join(str(key) for key in content if str(key) not in named)[:120] or "nothing"
        raise CheckpointError(f"{path} holds {others} where a dictionary of tensors was needed.")
    odd = [key for key, tensor in named.items() if tensor.layout != torch.strided or tensor.is_meta]
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is sparse or has no data, needs a plain tensor.")
    return named


def _unwrapped(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while wrapper := next((each for each in _WRAPPERS if all(key.startswith(each) for key in named)), None):
        named = {key.removeprefix(wrapper): value for key, value in named.items()}
    return named
