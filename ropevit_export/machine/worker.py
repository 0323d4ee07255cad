"""Work in a process of its own: memory is given back, and a library that dies or prints takes nothing else with it.

The one protocol for all of them: parent and child exchange pickled values, what libraries print goes to a file of the
parent's, and a child whose parent is gone ends itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import IO, Any, Concatenate, ParamSpec

from ropevit_export.errors import last_line
from ropevit_export.machine.process import Interrupted, interrupt, quiet_libraries

PATIENCE = 15  # seconds that a child has to clear up after it was asked to stop
INTERRUPTED = 130  # a child's exit code after that

P = ParamSpec("P")
_START = "import sys; sys.path[:] = {path!r}; from ropevit_export.machine.worker import serve; serve()"


class WorkerDiedError(Exception):
    """A child ended without an answer. `code`: its exit code, negative of the signal that killed it."""

    def __init__(self, code: int, last_line: str) -> None:
        self.code = code
        how = f"with exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"by {signal.Signals(-code).name}" + (", was memory short?" if -code == signal.SIGKILL else "")
        super().__init__(f"{how}: {last_line}")


class Channel:
    """What a child's function talks to its parent through."""

    def __init__(self, answers: IO[bytes], heard: queue.SimpleQueue[Any]) -> None:
        self._answers, self._heard = answers, heard

    def say(self, value: object) -> None:
        """Raises Interrupted once the parent wants an end, even where a library has swallowed the signal."""
        if Interrupted.arrived:
            raise Interrupted
        pickle.dump(value, self._answers)
        self._answers.flush()

    def hear(self) -> Any:
        """The next value that the parent sends; waits for it."""
        return self._heard.get()


class Worker:
    """A function of a module, running in a child with a Channel before its own arguments."""

    def __init__(
        self, function: Callable[Concatenate[Channel, P], None], *arguments: P.args, **keywords: P.kwargs
    ) -> None:
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        self._process = subprocess.Popen(
            # Our own path of imports: the present folder must not be on it.
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            start_new_session=True,  # Ctrl-C comes to us alone, and we end it
        )
        self.send((function, arguments, keywords))

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send(self, value: object) -> None:
        """To a child that has died it makes no difference: `receive` will say how."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(value, self._process.stdin)
            self._process.stdin.flush()  # and stays open: its end tells the child that we are gone

    def receive(self) -> Any:
        """The next value that the child says; waits for it. Raises WorkerDiedError."""
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerDiedError(self._process.wait(), self._last_line()) from None

    def stop(self) -> None:
        """Ask it to clear up and end."""
        self._process.terminate()

    def wait(self, patience: float | None = None) -> int:
        """Its exit code; a child that does not end in time is killed."""
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:  # native code hears no signal
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Once it has ended and nobody reads from it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._printed.close()

    def _last_line(self) -> str:
        self._printed.seek(0)
        return last_line(self._printed.read().decode(errors="replace") or "it said nothing")


class _Question:
    """A function's first word, waited for a limited time."""

    def __init__(self, function: Callable[..., None], arguments: Sequence[object], seconds: float) -> None:
        self._worker, self._seconds, self._late = Worker(function, *arguments), seconds, False
        self._timer = threading.Timer(seconds, self._give_up)
        self._timer.start()

    def answer(self) -> Any:
        try:
            return self._worker.receive()
        except WorkerDiedError as error:
            return TimeoutError(f"gave no answer in {self._seconds:.0f} s") if self._late else error

    def stop(self) -> None:
        self._timer.cancel()
        self._worker.stop()

    def close(self) -> None:
        self._worker.wait(PATIENCE)
        self._worker.close()

    def _give_up(self) -> None:
        self._late = True
        self._worker.wait(0)  # kills it


def ask_each(
    function: Callable[..., None], calls: Sequence[Sequence[object]], *, seconds: float, at_once: int = 1
) -> Generator[Any, None, None]:
    """What a function says first to each call's arguments, in their order; every call has a child of its own.

    Given instead, not raised: WorkerDiedError for a child that ended without an answer, TimeoutError for one that was
    killed after so many seconds.
    """
    waiting, running = deque(calls), deque[_Question]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Question(function, waiting.popleft(), seconds))
            yield running[0].answer()
            running[0].stop()
            running.popleft().close()
    finally:
        for each in running:
            each.stop()
        for each in running:
            each.close()


def serve() -> None:
    """The child: run what comes through stdin, say through stdout; what libraries print there is no answer."""
    signal.signal(signal.SIGTERM, interrupt)
    code = 0
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        function, arguments, keywords = pickle.load(sys.stdin.buffer)
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(heard,), daemon=True).start()
        try:
            with quiet_libraries():
                function(Channel(answers, heard), *arguments, **keywords)
        except (Interrupted, BrokenPipeError):
            code = INTERRUPTED
    sys.stderr.flush()
    os._exit(code)  # taking torch apart takes two seconds and changes nothing


def _listen(heard: queue.SimpleQueue[Any]) -> None:
    """A parent that was killed can't stop us. What we leave then, the next builder clears up."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            heard.put(pickle.load(sys.stdin.buffer))
    os._exit(1)
