"""A lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ropevit_export.machine import files
from ropevit_export.machine.process import deferred

# Filesystems of clusters that are mounted without locks say so by one of these.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_POLL = 0.2  # seconds


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of a file, which is made for it and removed after it; False where the filesystem has no locks.

    Where another process holds it: BlockingIOError or, with `waiting`, which is called over and over, patience.
    """
    taken: tuple[int, bool] | None = None
    try:
        while True:
            with deferred():  # a file that was made is known here
                taken = _try(path)
            if taken is not None:
                break
            if waiting is None:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds its lock", str(path))
            waiting()
            time.sleep(_POLL)
        yield taken[1]
    finally:
        if taken is not None:
            with deferred():
                _release(path, taken[0])


def _release(path: Path, fd: int) -> None:
    # While it is still locked: whoever opened it meanwhile then sees that its name is gone. Windows removes no open
    # file.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(fd)
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            path.unlink()


def _try(path: Path) -> tuple[int, bool] | None:
    """The locked file and whether locks work at all; None where another process has it."""
    while True:
        fd = files.open_lock(path)
        try:
            held = _lock(fd)
            if _is(fd, path):
                return fd, held
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last holder removed it between our opening and our locking


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise BlockingIOError(*error.args) from error
        raise
    return True
