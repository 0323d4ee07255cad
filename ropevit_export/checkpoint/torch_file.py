"""PyTorch's files: a zip archive, the format of before 1.6, or a bare pickle. Their tensors stay on disk until they are
read: the file is mapped into memory.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from ropevit_export.checkpoint.unpickle import Storage, unpickled
from ropevit_export.errors import CheckpointError

# How a file of the format of before 1.6 begins, and its version.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TAR_MEMBERS = (b"sys_info", b"pickle", b"storages", b"tensors")


def read(path: Path, start: bytes) -> object:
    """What a file holds: tensors, plain containers and `Inert`. `start`: its first bytes.

    Raises CheckpointError for what is another kind of file, RefusedError for one that would run code, and anything else
    for damaged bytes.
    """
    if start.startswith(b"PK"):
        return _zipped(path)
    if start[257:262] == b"ustar" or start.startswith(_TAR_MEMBERS):
        raise CheckpointError(
            f"{path} is a tar archive: unpack it and give the file in it; one that PyTorch wrote before 0.2 has to be "
            "loaded and saved again with that PyTorch."
        )
    with path.open("rb") as stream:
        return _pickled(stream, lambda: _mapped(path), _nested)


def _mapped(path: Path) -> torch.UntypedStorage:
    """The file's bytes; what is changed in memory does not reach the file."""
    return cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(path), False, path.stat().st_size))


def _zipped(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        order = archive.read(records["byteorder"]).decode() if "byteorder" in records else "little"
        content = archive.read(records["data.pkl"])
    whole = _mapped(path)

    def storage(pid: Any) -> Storage:
        if isinstance(pid, tuple) and len(pid) > 1 and isinstance(pid[1], type):  # of a kind without plain numbers
            return Storage(None, torch.uint8)
        dtype, key, count = _storage_id(pid)
        record, nbytes = records[f"data/{key}"], count * dtype.itemsize
        if nbytes > record.file_size:
            raise pickle.UnpicklingError(f"data/{key} has {record.file_size} bytes, its tensors need {nbytes}")
        begin = _data_offset(path, record)
        part = whole[begin : begin + nbytes]
        if order != sys.byteorder and dtype.itemsize > 1:
            part = part.clone()
            part.byteswap(dtype)
        return Storage(part, dtype)

    return unpickled(io.BytesIO(content), _once(storage), _nested)


def _data_offset(path: Path, record: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its own header, whose lengths may differ from the directory's."""
    with path.open("rb") as stream:
        stream.seek(record.header_offset)
        header = stream.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return record.header_offset + 30 + int(name) + int(extra)


def _storage_id(pid: Any) -> tuple[torch.dtype, str, int]:
    """(format, key, number of elements)."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
        raise pickle.UnpicklingError("a persistent id is of no storage")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(key, (str, int)):
        raise pickle.UnpicklingError(f"a storage has a {type(key).__name__} for a name")
    if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0:
        raise pickle.UnpicklingError(f"storage {key} is of an unknown type")
    return dtype, str(key), count


def _once(storage: Callable[[Any], Storage]) -> Callable[[Any], Storage]:
    """Tensors that share a storage do so after reading too."""
    known: dict[str, Storage] = {}

    def found(pid: Any) -> Storage:
        key = str(pid[2]) if isinstance(pid, tuple) and len(pid) > 2 and isinstance(pid[2], (str, int)) else ""
        if key not in known:
            known[key] = storage(pid)
        return known[key]

    return found


def _pickled(
    stream: IO[bytes], mapped: Callable[[], torch.UntypedStorage], nested: Callable[[bytes], object]
) -> object:
    """A bare pickle, such as `pickle.dump(model.state_dict(), file)` writes, or the format of before 1.6."""
    first = unpickled(stream, nested=nested)
    return _before_1_6(stream, mapped, nested) if first == _MAGIC else first


def _before_1_6(
    stream: IO[bytes], mapped: Callable[[], torch.UntypedStorage], nested: Callable[[bytes], object]
) -> object:
    """Pickles one after the other, then the storages. Where those lie is known only behind the pickle that makes
    tensors of them: it is read twice.
    """
    version = unpickled(stream)
    if not isinstance(version, int):
        raise pickle.UnpicklingError("its version is no number")
    if version != _VERSION:
        raise CheckpointError(f"the file is of PyTorch's format {version}, needs {_VERSION}: load and save it again.")
    unpickled(stream)  # the machine that it was written on
    begin = stream.tell()
    sizes: dict[str, int] = {}

    def skim(dtype: torch.dtype, key: str, count: int, view: Any) -> Storage:
        sizes[key] = count * dtype.itemsize
        return Storage(None, dtype)

    unpickled(stream, _by_id(skim), nested)
    whole, places = mapped(), {}
    listed = unpickled(stream)
    if not (isinstance(listed, list) and all(isinstance(key, str) for key in listed)):
        raise pickle.UnpicklingError("its list of storages is none")
    for key in listed:
        stream.seek(8, io.SEEK_CUR)  # the number of elements, which the pickle says too
        places[key] = stream.tell()
        if places[key] + sizes.get(key, 0) > whole.nbytes():
            raise pickle.UnpicklingError(f"storage {key} ends behind the file")
        stream.seek(sizes.get(key, 0), io.SEEK_CUR)

    def storage(dtype: torch.dtype, key: str, count: int, view: Any) -> Storage:
        offset, length = (0, count) if view is None else view[1:]
        if not 0 <= offset <= offset + length <= count:
            raise pickle.UnpicklingError(f"storage {key} has no part from {offset} to {offset + length}")
        first = places[key] + offset * dtype.itemsize
        return Storage(whole[first : first + length * dtype.itemsize], dtype)

    stream.seek(begin)
    return unpickled(stream, _by_id(storage), nested)


def _by_id(storage: Callable[[torch.dtype, str, int, Any], Storage]) -> Callable[[Any], Any]:
    """What a persistent id stands for; a view of a storage names the part that it is."""

    def found(pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == ("module",):  # a class with its source text
            return pid[1]
        dtype, key, count = _storage_id(pid)
        return storage(dtype, key, count, pid[5] if len(pid) > 5 else None)

    return found


def _nested(content: bytes) -> object:
    """A storage within a bare pickle: a file of the format of before 1.6."""

    def whole() -> torch.UntypedStorage:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()

    return _pickled(io.BytesIO(content), whole, _no_deeper)


def _no_deeper(content: bytes) -> object:
    """Each that holds several of the next, ten of them would be read for ever."""
    raise pickle.UnpicklingError("it holds a storage within a storage")
