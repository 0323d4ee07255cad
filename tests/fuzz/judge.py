"""What must be so whatever a file holds: it is read or refused, in one printable line, in bounded memory and time."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ropevit_export.errors import RopevitError, printable
from tests.fuzz.mutators import Mutate, any_bytes

SECONDS = 5.0  # of this process's CPU time
ROOM = 1 << 30  # bytes that reading may map beside what is mapped before
_SAY_MEMORY = ("MemoryError", "can't allocate", "bad_alloc", "Unable to allocate", "Cannot allocate")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A way that a stranger's file is read.

    file     what it is called, in a folder of its own
    opens    what is done with it first, given the folder; where that refuses it, nothing more is done
    read     what is done with it then: a call each, since one's refusal would hide what the next does
    refuses  what a call may raise
    beside   makes what else is in the folder
    mutate   how the file is changed; `words`: what libFuzzer may put into it beside that
    longest  bytes of a file
    """

    file: str
    read: tuple[Callable[[Path], object], ...]
    refuses: tuple[type[RopevitError], ...]
    opens: Callable[[Path], object] = lambda folder: None
    beside: Callable[[Path], object] = lambda folder: None
    mutate: Mutate = any_bytes
    words: tuple[str, ...] = ()
    longest: int = 20_000


class Finding(AssertionError):  # noqa: N818 - as fuzzers call it
    """What no file may lead to."""


def judged(reader: Reader, content: bytes, folder: Path) -> list[RopevitError]:
    """What the reader's calls refuse a file with; nothing where all of them read it. Raises Finding, and anything else
    that a call raises, which is one too. `folder`: with what lies beside the file.
    """
    (folder / reader.file).write_bytes(content)
    if (refusal := _refusal(reader.opens, reader, folder)) is not None:
        return [refusal]
    return [refusal for call in reader.read if (refusal := _refusal(call, reader, folder)) is not None]


def _refusal(call: Callable[[Path], object], reader: Reader, folder: Path) -> RopevitError | None:
    began = time.process_time()
    try:
        with _bounded_memory():
            call(folder)
    except reader.refuses as error:
        _require_one_printable_line(str(error))
        _require_no_large_allocation(error)
        return error
    finally:
        if (took := time.process_time() - began) > SECONDS:
            raise Finding(f"reading took {took:.0f} s")
    return None


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = mapped + ROOM if soft == resource.RLIM_INFINITY else min(soft, mapped + ROOM)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _require_one_printable_line(message: str) -> None:
    if len(message.splitlines()) != 1 or printable(message) != message:
        raise Finding(f"the message is no line that a terminal can be given: {message!r}")


def _require_no_large_allocation(error: BaseException | None) -> None:
    """One that failed may be said in other words."""
    while error is not None:
        said = f"{type(error).__name__} {error}"
        if any(each in said for each in _SAY_MEMORY):
            raise Finding(f"a number of the file decided how much memory was taken: {said}")
        error = error.__cause__ or error.__context__
