"""How a process of ours hears signals, and where libraries may print."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, NoReturn

# Ctrl-C, a polite kill, a closed terminal (which Windows does not have)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(BaseException):
    """Raised where a signal arrives, so that every `finally` on the way out runs.

    Python drops what is raised inside a finaliser or a library's callback: the next stage then raises it again.

    written: the bundle that has been published since the command began, which whatever ends it now must not deny.
    """

    arrived: ClassVar[bool] = False
    written: ClassVar[str | None] = None

    @classmethod
    def standing(cls) -> str:
        """What an interrupted command leaves on the disk."""
        return f"{cls.written} is written and whole" if cls.written else "nothing was written"


def interrupt(number: int, frame: object) -> NoReturn:
    Interrupted.arrived = True
    for signum in SIGNALS:  # a second one must not stop the clean-up
        signal.signal(signum, signal.SIG_IGN)
    raise Interrupted


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """What would interrupt the block arrives behind it. For few and short steps that belong together."""
    if threading.current_thread() is not threading.main_thread():  # signals interrupt the main thread only
        yield
        return
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for each in SIGNALS:
            handler = signal.getsignal(each)
            if handler not in (signal.SIG_IGN, None):  # None: a library's own
                before[each] = handler
                signal.signal(each, lambda number, frame: arrived.append(number))
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Behind the block signals are heard as before it, whatever a library has set. In the main thread."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Behind the block the thread has the stack for signal handlers that it had before.

    For OpenVINO: each compiled model sets one of its own and, as it goes, the one it found. Of two models of which the
    older one goes first that is freed memory, and the next signal, Ctrl-C too, ends the process by SIGSEGV.
    """
    if sys.platform != "linux":
        yield
        return
    libc, stack = ctypes.CDLL(None), _SignalStack()
    known = libc.sigaltstack(None, ctypes.byref(stack)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(stack), None)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """What libraries print goes nowhere near our stdout, and their warnings are not the user's."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
