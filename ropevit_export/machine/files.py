"""Files: what one is known by, reading those of strangers, and everything that an export does to a disk.

Whatever writes, renames or removes a file of a bundle does it here, so that a test can let each of these fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

KB, MB, GB = 2**10, 2**20, 2**30
LONGEST_NAME = 255  # bytes: of filesystems that are in use

# Filesystems that can't exchange two names, or sync a folder, say so by one of these.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def regular(path: Path) -> Iterator[IO[bytes]]:
    """A file open for reading. Raises OSError for what is none: to open a pipe of a stranger would wait for ever."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(fd, "rb") as stream:  # noqa: PTH123 - of a descriptor
        require_regular(os.fstat(fd), path)
        yield stream


def require_regular(found: os.stat_result, path: Path) -> None:
    """Raises OSError."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, needs a file", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, needs a file", str(path))


def read(path: Path, *, most: int) -> bytes:
    """All of a file of at most so many bytes. Raises OSError for a larger one and for what is no file."""
    with regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size  # a reader makes room for what it is asked for, not for what there is
        content = stream.read(min(size, most) + 1)
    if len(content) > most:
        raise OSError(
            errno.EFBIG, f"it has more than {most / MB:.3g} MB, which is more than any such file needs", str(path)
        )
    return content


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read in parts, since weights are large. Raises OSError."""
    digest = hashlib.sha256()
    with regular(path) as stream:
        while block := stream.read(MB):
            digest.update(block)
    return digest.hexdigest()


def open_lock(path: Path) -> int:
    """The descriptor of a file that is made where there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def make_folder(path: Path) -> None:
    path.mkdir()


def write(path: Path, content: bytes | memoryview) -> None:
    path.write_bytes(content)


def append(path: Path, content: bytes | memoryview, *, alignment: int = 1) -> int:
    """Behind what the file holds, from the next multiple of `alignment`, which is returned."""
    with path.open("ab") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(b"\0" * (-stream.tell() % alignment))
        start = stream.tell()
        stream.write(content)
    return start


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def rename(source: Path, target: Path) -> None:
    source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Two names change places in one step, which nobody sees half done. Raises OSError; `is_unsupported` tells whether
    because the system or this filesystem can't.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def is_unsupported(error: OSError) -> bool:
    return error.errno in _UNSUPPORTED


def remove_folder(path: Path) -> None:
    """With all that is in it. Raises OSError; that it is not there is none."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def sync(path: Path) -> None:
    """A file, or the names in a folder, is on the disk when this returns. Raises OSError, where a disk only then says
    that it is full or broken.
    """
    if sys.platform == "win32":  # opens no folder, and syncs no file that is open for reading
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if not is_unsupported(error):
            raise
    finally:
        os.close(fd)


def mount_points(folder: Path) -> list[Path]:
    """The folder itself, or files and folders in it, that something is mounted on. Linux tells of bind mounts, too."""
    resolved = folder.resolve()
    found = [resolved] if resolved.is_mount() else []
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        places = (line.split(b" ")[4] for line in lines)  # its fifth field, with spaces as \040
        found += (
            Path(os.fsdecode(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), each))) for each in places
        )
    return [each for each in dict.fromkeys(found) if each.is_relative_to(resolved)]


def is_fixed(path: Path) -> bool:
    """Whether Linux lets nobody change or rename a file, or a folder's names: `chattr +i` or `+a`."""
    if sys.platform != "linux":
        return False
    import fcntl

    flags = bytearray(8)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _GET_FLAGS, flags)
    except OSError:  # a filesystem without such flags
        return False
    finally:
        os.close(fd)
    return bool(int.from_bytes(flags, sys.byteorder) & (_IMMUTABLE | _APPEND))


# linux/fs.h: FS_IOC_GETFLAGS of 64-bit systems, FS_IMMUTABLE_FL, FS_APPEND_FL
_GET_FLAGS, _IMMUTABLE, _APPEND = 0x80086601, 0x10, 0x20


@contextlib.contextmanager
def without_links(model: Path) -> Iterator[Path]:
    """A model file as one that is no link and has no links to weights beside it, for a library that follows none out of
    the folder. The hub's cache, DVC and Bazel keep files behind such links.
    """
    parts = [model, *model.parent.glob("*.data"), *model.parent.glob(f"{model.stem}.bin")]
    if not any(each.is_symlink() for each in parts):
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for each in parts:
            real = Path(folder) / each.name
            link(each, real)
        yield Path(folder) / model.name


def link(source: Path, target: Path) -> None:
    """The same bytes under a second name, without a copy where the filesystem can: weights are large."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # on another filesystem
        shutil.copyfile(source, target)
