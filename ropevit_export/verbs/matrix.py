"""Many bundles, each built in a process of its own: memory is given back, and a build that dies is one that failed.

A bundle appears whole or not at all, and says what request it was made from. So there is no state to keep beside the
bundles: what an interrupted matrix had finished, the next run finds.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ropevit_export import pipeline, planning
from ropevit_export.bundle import staging
from ropevit_export.bundle.manifest import Bundle
from ropevit_export.bundle.resume import existing
from ropevit_export.errors import BackendError, BundleError, RopevitError, UsageError, last_line
from ropevit_export.machine.worker import PATIENCE, Channel, Worker, WorkerDiedError
from ropevit_export.request import Request
from ropevit_export.stages import Progress

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One bundle of a matrix. `recipe`: the name of the one that it is built by, or nothing. `cache`: of engines."""

    request: Request
    recipe: str
    out: Path
    cache: Path | None = None

    @classmethod
    def of(cls, request: Request, recipe: str, folder: Path, cache: Path | None = None) -> Cell:
        """Its bundle is called as a single one would be, and by the recipe."""
        name = request.bundle_name + (f"-{recipe}" if recipe else "")
        name += planning.RANDOM_SUFFIX if request.weights == "random" else ""
        return cls(request=request, recipe=recipe, out=folder / name, cache=cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a cell. `reason`: why it failed, or a remark. `worst`: parity's largest share of its limit."""

    result: Literal["built", "kept", "failed"]
    reason: str | None = None
    exit_code: int = 0
    seconds: float = 0.0
    bundle: str | None = None
    artifacts: tuple[str, ...] = ()
    bytes: int | None = None
    worst: float | None = None
    trained: bool = True


# A cell and the stage that it has reached, or what became of it.
Event = tuple[Cell, "str | Outcome"]


def build(cells: Sequence[Cell], *, force: bool = False, jobs: int = 1) -> Generator[Event, None, None]:
    """Build what is not there yet, `jobs` at once; closing the iterator ends what still runs.

    `force` replaces bundles that were made from other requests or by other versions; those of the same stay.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    waiting, running = deque(cells), dict[Path, _Child]()
    with _folders(cells):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.popleft()
                    done = _done(cell, force)
                    if done is None:
                        running[cell.out] = _Child(cell, force, events)
                    yield cell, done or "start"
                while running:
                    cell, said = events.get()
                    ended = isinstance(said, Outcome)
                    if ended:
                        running.pop(cell.out).join()
                    yield cell, said
                    if ended:
                        break
        finally:
            for child in running.values():
                child.stop()
            for child in running.values():
                child.join()


def build_on_ray(
    cells: Sequence[Cell], *, force: bool = False, jobs: int | None = None
) -> Generator[Event, None, None]:
    """The same, each build a Ray task, on the cluster that RAY_ADDRESS names or else on this machine.

    Every node needs this package, and sees the present folder, the bundles' and what requests name under the same
    paths. Ray decides how many are built at once, at most `jobs`.
    """
    ray, ours = _ray()
    # A worker that has built one bundle ends: its memory is given back.
    task = ray.remote(max_calls=1, max_retries=0)(_attempt_at)
    gpus = ray.cluster_resources().get("GPU", 0)
    waiting, running = deque(cells), dict[Any, tuple[Cell, float]]()
    with _folders(cells):
        try:
            while waiting or running:
                while waiting and (jobs is None or len(running) < jobs):
                    cell = waiting.popleft()
                    done = _done(cell, force)
                    if done is not None:
                        yield cell, done
                        continue
                    # Where there is no GPU at all, a task that asks for one would wait for ever instead of failing.
                    needs = {"num_gpus": 1} if gpus and "tensorrt" in cell.request.engines else {}
                    reference = task.options(**needs).remote(str(Path.cwd()), cell, force)
                    running[reference] = cell, time.monotonic()
                    yield cell, "handed to Ray"
                # A signal is heard between two waits only.
                ready, _ = ray.wait(list(running), timeout=0.5) if running else ([], [])
                for reference in ready:
                    cell, start = running.pop(reference)
                    yield cell, _ray_outcome(ray, reference, cell, time.monotonic() - start)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)  # native code would not hear a polite one
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)
            for cell, _ in running.values():
                _clear_up(cell)
            if ours:
                ray.shutdown()


def require_distinct(cells: Sequence[Cell]) -> None:
    names = [each.out.name for each in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two bundles of the matrix would be called {twice[0]}: name models, sizes and recipes once.")


@contextlib.contextmanager
def _folders(cells: Sequence[Cell]) -> Iterator[None]:
    """Made once for all cells: one that fails must not remove the folder that another is about to write to."""
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(each.out.parent for each in cells):
            stack.enter_context(staging.parents(folder))
        yield


def _done(cell: Cell, force: bool) -> Outcome | None:
    """A bundle that is there already; it costs no process to see that."""
    start = time.monotonic()
    try:
        kept = existing(cell.request, cell.out, force=force)
    except RopevitError as error:
        return Outcome(result="failed", reason=str(error), exit_code=error.exit_code)
    return None if kept is None else _finished(kept, time.monotonic() - start)


def _attempt(cell: Cell, force: bool, progress: Progress) -> Outcome:
    start = time.monotonic()
    try:
        made = pipeline.export(
            cell.request, out=cell.out, force=force, cache=cell.cache, resume=True, progress=progress
        )
    except RopevitError as error:
        reason, code = str(error), error.exit_code
    except Exception as error:  # a bug of ours fails one cell, too
        reason, code = f"unexpected {type(error).__name__}: {error}", 1
    else:
        return _finished(made, time.monotonic() - start)
    return Outcome(result="failed", reason=reason, exit_code=code, seconds=time.monotonic() - start)


def _attempt_at(folder: str, cell: Cell, force: bool) -> Outcome:
    """A Ray task: relative paths mean the same as where it was started."""
    os.chdir(folder)
    return _attempt(cell, force, lambda stage: None)


def _finished(bundle: Bundle, seconds: float) -> Outcome:
    shares = [(each.metrics["relative"] or 0.0) / each.tolerance["relative"] for each in bundle.manifest.parity]
    return Outcome(
        result="kept" if bundle.kept else "built",
        reason=bundle.remark,
        seconds=seconds,
        bundle=str(bundle.path),
        artifacts=tuple(dict.fromkeys(each.kind for each in bundle.manifest.artifacts)),
        bytes=sum(path.stat().st_size for path in bundle.path.iterdir()),
        worst=max(shares),
        trained=bundle.manifest.weights.trained,
    )


def _clear_up(cell: Cell) -> None:
    """After a build that was killed: claiming its bundle is all it takes."""
    for final in (cell.out, cell.out.with_name(cell.out.name + planning.RANDOM_SUFFIX)):
        with contextlib.suppress(BundleError), staging.claimed(final):
            pass


class _Child:
    """The process that builds a cell; what it says goes to `events`, its outcome last."""

    def __init__(self, cell: Cell, force: bool, events: queue.SimpleQueue[Event]) -> None:
        self._cell, self._events, self._start = cell, events, time.monotonic()
        self._worker = Worker(_build_one, cell, force)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Ask it to clear up and end."""
        self._worker.stop()

    def join(self) -> None:
        code = self._worker.wait(PATIENCE)
        self._reader.join()
        self._worker.close()
        if code != 0:
            _clear_up(self._cell)

    def _read(self) -> None:
        try:
            while True:
                said = self._worker.receive()
                self._events.put((self._cell, said))
                if isinstance(said, Outcome):
                    return
        except WorkerDiedError as error:
            reason, seconds = f"the build's process ended {error}", time.monotonic() - self._start
            outcome = Outcome(result="failed", reason=reason, exit_code=1, seconds=seconds)
            self._events.put((self._cell, outcome))


def _build_one(channel: Channel, cell: Cell, force: bool) -> None:
    """The process of a cell: says the stages, and the outcome last."""
    channel.say(_attempt(cell, force, channel.say))


def _ray() -> tuple[ModuleType, bool]:
    """Ray, connected, and whether it was us who connected it."""
    try:
        import ray
    except ImportError as error:
        raise BackendError("--ray needs Ray: pip install 'ropevit-export[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        with _own_signals():
            ray.init(log_to_driver=False, logging_level="ERROR")
    return ray, ours


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; what was set before stays."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _ray_outcome(ray: ModuleType, reference: Any, cell: Cell, seconds: float) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:  # the worker died, was out of memory, or lacks this package
        _clear_up(cell)
        return Outcome(result="failed", reason=f"Ray: {last_line(error)}", exit_code=1, seconds=seconds)
    return found
