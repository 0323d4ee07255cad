"""Files that are no checkpoint, told by their first bytes or by the names in an archive, and what to do with each."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Collection
from typing import NamedTuple

STATE_DICT = 'save its tensors alone where it was made: torch.save(model.state_dict(), "weights.pth")'


class _Beginning(NamedTuple):
    content: bytes
    sentence: str
    at: int = 0


_NEEDS = "needs PyTorch's or safetensors"
_BEGINNINGS = (
    _Beginning(b"version https://git-lfs", "it is a git-lfs pointer: run `git lfs pull` for the file itself"),
    _Beginning(b"\x89HDF", f"it is an HDF5 file, {_NEEDS}"),
    _Beginning(b"GGUF", f"it is a GGUF file, {_NEEDS}"),
    _Beginning(b"TFL3", f"it is a TFLite file, {_NEEDS}", at=4),
    _Beginning(b"\x93NUMPY", f"it is a single NumPy array, {_NEEDS}"),
    *(
        _Beginning(content, f"it is compressed by {program}: unpack it")
        for content, program in (
            (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"7z\xbc\xaf", "7-Zip"), (b"Rar!", "RAR"),
        )
    ),
)  # fmt: skip
# Fields of ONNX's ModelProto that follow its version: names of what wrote it, the graph, the operator sets.
_OF_ONNX = (b"\x12", b"\x1a", b"\x3a", b"\x42")
_SHOWN = 40
_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".th", ".tar", ".pkl", ".safetensors")


def kind(start: bytes) -> str:
    """What a file is that is neither safetensors, an archive nor a pickle; `start`: its first bytes."""
    if not start:
        return "it is empty"
    for known in _BEGINNINGS:
        if start[known.at :].startswith(known.content):
            return known.sentence
    if not start.strip(b"\0"):
        return "it begins with zeros, as a file does whose download has not ended: get it again"
    if text := _text(start):
        if text.lower().startswith(("<html", "<!doctype", "<!--", "<?xml")):
            return "it is a web page, probably of a failed download"
        return f"it is text, probably what a server answered in place of a file: {text[:_SHOWN]!r}"
    if start[0] == 8 and start[2:3] in _OF_ONNX:
        return "it looks like an ONNX graph, needs the checkpoint that it was made of"
    return f"it is neither a safetensors file nor one that PyTorch wrote, or is damaged: it begins with {start[:8]!r}"


def _text(start: bytes) -> str:
    """What the bytes say, without spaces around it; "" where they are no text. The last character may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start).strip()
    except UnicodeDecodeError:
        return ""
    return text if all(each.isprintable() or each.isspace() for each in text) else ""


def kind_of_archive(archive: zipfile.ZipFile) -> str | None:
    """What a zip archive is that is none of `torch.save`; None for one that is."""
    paths = archive.namelist()
    names = {path.rpartition("/")[2] for path in paths}
    if "constants.pkl" in names:
        return (
            "is a TorchScript program, which holds a traced module and no names of this kind: "
            f"{STATE_DICT} from the module that was traced or scripted"
        )
    if names & {"archive_format", "serialized_exported_program.json"}:
        return f"is a program of torch.export: {STATE_DICT} from the module that was exported"
    if any(name.endswith(".npy") for name in names):
        return (
            "is an archive of NumPy arrays: safetensors.numpy.save_file(dict(numpy.load(FILE)), "
            '"weights.safetensors") makes a file of it that is read'
        )
    if "data.pkl" not in names:
        return f"is a zip archive, but none of torch.save: {_unpack(paths)}"
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        return (
            "was packed again by another program than torch.save: torch.save(torch.load(FILE, weights_only=True), "
            '"weights.pth") makes a file of it that is read'
        )
    return None


def _unpack(paths: Collection[str]) -> str:
    weights = [path for path in paths if path.lower().endswith(_WEIGHTS)]
    if weights:
        return f"it has {', '.join(weights[:3])} in it: unpack it and give that"
    return f"it has {', '.join(list(paths)[:3]) or 'nothing'} in it, and no weights of PyTorch's or safetensors'"
