"""What the system is told of memory that this process maps."""

from __future__ import annotations

import ctypes
import mmap
import sys

_MADV_PAGEOUT = 21  # asm-generic/mman-common.h, since Linux 5.4


def not_soon(address: int, nbytes: int) -> None:
    """Advice that these bytes won't be read soon. Those of a mapped file are no longer counted as this process's, and
    come back from the file when they are read; others stay. Without effect where a system has no such advice, or where
    the file is another user's and not to be written: then it takes them back when it needs memory.
    """
    if sys.platform != "linux":
        return
    begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT)
