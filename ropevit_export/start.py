"""The program's first steps: signals and the standard streams, before anything that takes time is imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from ropevit_export.machine.process import SIGNALS, Interrupted, interrupt


def main() -> NoReturn:
    """Console entry point."""
    try:
        for signum in SIGNALS:
            signal.signal(signum, interrupt)
        code = _run()
    except Interrupted:  # before or after the command line's own answer to it
        code = _fail(f"interrupted, {Interrupted.standing()}.", 130)
    os._exit(code)  # taking torch and TensorRT apart again takes two seconds and changes nothing


def _run() -> int:
    if sys.stdout is None:
        return _fail("stdout is closed, where results go: leave it open, or send it to /dev/null.", 1)
    for fd in (0, 1, 2):  # the next file that is opened would take the place of a closed one, and what is printed
        with contextlib.suppress(OSError):
            if not _is_open(fd):
                os.open(os.devnull, os.O_RDWR)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for weights, half the page faults
    from ropevit_export.cli import run

    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has left, and most do on purpose
        return code or 1
    except OSError as error:
        standing = f"; {Interrupted.standing()}" if Interrupted.written else ""
        return _fail(f"can't write the result: {error.strerror or error}{standing}.", code or 1)
    return code


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: {message}\n")
            sys.stderr.flush()
    return code
