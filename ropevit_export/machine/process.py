"""How a process of ours hears signals, and where libraries may print."""

from __future__ import annotations

import contextlib
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

# Ctrl-C, a polite kill, a closed terminal (which Windows does not have)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(BaseException):
    """Raised where a signal arrives, so that every `finally` on the way out runs.

    Python drops what is raised inside a finaliser or a library's callback: the next stage then raises it again.
    """

    arrived = False


def interrupt(number: int, frame: object) -> NoReturn:
    Interrupted.arrived = True
    for signum in SIGNALS:  # a second one must not stop the clean-up
        signal.signal(signum, signal.SIG_IGN)
    raise Interrupted


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """What libraries print goes nowhere near our stdout, and their warnings are not the user's."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
