"""`bench`: bundles in turn with one another and with what a user would run otherwise.

Every contender has a process of its own: threads, memory and its peak. In each round all of them take a turn, in a new
order, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ropevit_export.backends.select import ON_GPU
from ropevit_export.errors import BackendError, RopevitError, UsageError, with_kind
from ropevit_export.images.preprocess import normalise
from ropevit_export.machine import hardware
from ropevit_export.machine.worker import PATIENCE, Channel, Worker, WorkerDiedError
from ropevit_export.parity import samples
from ropevit_export.runtime import load
from ropevit_export.tuned import Setting
from ropevit_export.values import Resolution
from ropevit_export.verbs import peers
from ropevit_export.verbs.peers import Run

WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """What is timed: a bundle on a backend, or one of its `peers`, which are on a GPU where the bundle's backend is.

    `setting`: how a bundle runs, where not as the backend does by itself. With several streams a time is that of many
    batches, divided by their number.
    """

    name: str
    bundle: Path
    peer: str | None
    backend: str
    setting: Setting | None = None

    @classmethod
    def of(cls, bundle: Path, setting: Setting) -> Contender:
        return cls(name=setting.name, bundle=bundle, peer=None, backend=setting.backend, setting=setting)

    @property
    def batches(self) -> int:
        """That one time is of."""
        streams = 1 if self.setting is None else self.setting.streams
        return 1 if streams == 1 else 4 * streams

    @property
    def on_gpu(self) -> bool:
        return self.backend in ON_GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """A contender's times, one a round, and those of the first contender in the same rounds.

    `transfers`: whether images go to a device and answers come back within these times; "none" where there is no need.
    """

    contender: str
    runtime: str
    transfers: Literal["none", "included"]
    batch: int
    milliseconds: tuple[float, ...]
    first_milliseconds: tuple[float, ...]
    peak_mb: int | None

    @property
    def transfers_in_words(self) -> str:
        return "copies to and from the GPU included" if self.transfers == "included" else "no copies to a device"

    def summary(self) -> dict[str, float]:
        """p50, p90, p99 in ms; images a second at p50; p50 over the first contender's, and the quartiles of that ratio
        round by round.
        """
        p50, p90, p99 = np.percentile(self.milliseconds, (50, 90, 99))
        ratio = p50 / np.median(self.first_milliseconds)
        low, high = np.percentile(np.array(self.milliseconds) / self.first_milliseconds, (25, 75))
        return {
            "p50_ms": float(p50),
            "p90_ms": float(p90),
            "p99_ms": float(p99),
            "images_per_second": self.batch * 1000 / float(p50),
            "ratio": float(ratio),
            "ratio_q25": float(low),
            "ratio_q75": float(high),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark, whole. Times include neither loading nor preprocessing.

    `gpus_under_load`: nvidia-smi's answers right after the last round of each batch, clocks among them.
    """

    resolution: Resolution
    rounds: int
    machine: dict[str, object]
    timings: tuple[Timing, ...]
    gpus_under_load: tuple[dict[str, object], ...] = ()

    def as_json(self) -> dict[str, object]:
        return {
            "resolution": [self.resolution.height, self.resolution.width],
            "rounds": self.rounds,
            "warm_up_rounds": WARM_UP,
            "machine": self.machine,
            "gpus_under_load": self.gpus_under_load,
            "timings": [each.summary() | dataclasses.asdict(each) for each in self.timings],
        }


def contenders(bundles: Sequence[Path], named: Sequence[str], backends: Sequence[str]) -> list[Contender]:
    """Every bundle on every backend, then the peers of the first bundle's model; ratios are to the first of all."""
    made = [
        Contender(name=_name(bundle.name, backend, backends), bundle=bundle, peer=None, backend=backend)
        for backend in backends
        for bundle in bundles
    ]
    for peer in named:
        kind = peers.PEERS[peer]
        for backend in kind.on(peer, tuple(backends)):
            name = peer if kind.backends is None else _name(peer, backend, backends)
            made.append(Contender(name=name, bundle=bundles[0], peer=peer, backend=backend))
    names = [each.name for each in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two contenders are called {', '.join(twice)}: rename a folder.")
    return made


def _name(name: str, backend: str, backends: Sequence[str]) -> str:
    return name if len(backends) == 1 else f"{name}, {backend}"


def bench(
    contenders: Sequence[Contender],
    *,
    resolution: Resolution | None = None,
    batches: Sequence[int] = (1,),
    rounds: int = 20,
    progress: Callable[[str], None] = lambda stage: None,
) -> Benchmark:
    """Time all contenders at one size, batch after batch. Default size: the first that the first bundle names.

    Raises RopevitError for a contender that can't run.
    """
    size = resolution or load(contenders[0].bundle).sizes[0]
    facts = hardware.facts()  # before it is busy
    timings: list[Timing] = []
    loaded: list[dict[str, object]] = []
    for batch in batches:
        times, gpus = _timed(contenders, size, batch, rounds, progress)
        timings += times
        loaded += [{"batch": batch, **each} for each in gpus]
    return Benchmark(
        resolution=size, rounds=rounds, machine=facts, timings=tuple(timings), gpus_under_load=tuple(loaded)
    )


def _timed(
    contenders: Sequence[Contender], size: Resolution, batch: int, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Timing], list[dict[str, str | float]]]:
    """Times, and the GPUs as they were when the last round had ended."""
    times: list[list[float]] = [[] for _ in contenders]
    order, shuffle = list(range(len(contenders))), random.Random(0).shuffle
    with _workers(contenders, size, batch, progress) as workers:
        for number in range(WARM_UP + rounds):
            progress(f"batch {batch}: round {number - WARM_UP + 1} of {rounds}" if number >= WARM_UP else "warm-up")
            shuffle(order)
            for index in order:
                milliseconds = workers[index].run()
                if number >= WARM_UP:
                    times[index].append(milliseconds)
        gpus = hardware.gpus()[0] if any(each.on_gpu for each in contenders) else []
        peaks = [worker.peak_mb() for worker in workers]
    timings = [
        Timing(
            contender=each.name,
            runtime=worker.describe,
            transfers="included" if each.on_gpu else "none",
            batch=batch,
            milliseconds=tuple(mine),
            first_milliseconds=tuple(times[0]),
            peak_mb=peak,
        )
        for each, worker, mine, peak in zip(contenders, workers, times, peaks, strict=True)
    ]
    return timings, gpus


class _Worker:
    """A contender in its process."""

    def __init__(self, contender: Contender, size: Resolution, batch: int) -> None:
        self._contender = contender
        self._worker = Worker(_serve, contender, size, batch)
        self.describe = ""

    def wait_until_ready(self) -> None:
        self.describe = str(self._receive())

    def run(self) -> float:
        """Milliseconds."""
        self._worker.send("run")
        return float(self._receive())

    def peak_mb(self) -> int | None:
        self._worker.send("peak")
        answer: int | None = self._receive()
        return answer

    def stop(self) -> None:
        """Ask politely: a killed process leaves what libraries hold outside it."""
        self._worker.send("stop")

    def join(self) -> None:
        self._worker.wait(PATIENCE)
        self._worker.close()

    def _receive(self) -> Any:
        try:
            answer = self._worker.receive()
        except WorkerDiedError as error:
            raise BackendError(f"{self._contender.name} ended {error}") from error
        if isinstance(answer, RopevitError):
            raise type(answer)(f"{self._contender.name}: {answer}")
        return answer


@contextmanager
def _workers(
    contenders: Sequence[Contender], size: Resolution, batch: int, progress: Callable[[str], None]
) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for each in contenders:  # one after the other: loading takes all cores
            progress(f"load {each.name}")
            workers.append(_Worker(each, size, batch))
            workers[-1].wait_until_ready()
        yield workers
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


def _serve(channel: Channel, contender: Contender, size: Resolution, batch: int) -> None:
    """The process of a contender: answers "run" with milliseconds and "peak" with MB."""
    try:
        _answer(channel, contender, size, batch)
    except RopevitError as error:
        channel.say(error)
    except Exception as error:  # of a compiler or a GPU, anything
        channel.say(BackendError(with_kind(error)))


def _answer(channel: Channel, contender: Contender, size: Resolution, batch: int) -> None:
    describe, run = _prepare(contender, size, batch)
    run()
    channel.say(describe)
    while (asked := channel.hear()) != "stop":
        channel.say(_peak_mb() if asked == "peak" else turn(run) / contender.batches)


def turn(run: Run) -> float:
    """Milliseconds of the second of two runs: the first finds other contenders' data in the caches.

    Comes back when this process's threads are idle: pools go on spinning after a run (ONNX Runtime's for 50 ms), and
    would slow whoever is next.
    """
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    _wait_until_idle()
    return seconds * 1000


def _wait_until_idle() -> None:
    """Until this process's threads use less than half a core; a second at most."""
    pause, pauses = 0.02, 50
    for _ in range(pauses):
        used = time.process_time()
        time.sleep(pause)
        if time.process_time() - used < pause / 2:
            return


def _prepare(contender: Contender, size: Resolution, batch: int) -> tuple[str, Run]:
    """(runtime, a call that runs one batch)."""
    setting = contender.setting or Setting(backend=contender.backend)
    model = load(contender.bundle, setting.backend, form=setting.form, **setting.options)
    pixels = np.resize(samples.pixels(model.preprocess, size, seed=0), (batch, size.height, size.width, 3))
    images = samples.feed(pixels, normalise(pixels, model.preprocess), model.preprocess)
    if contender.peer is None:
        if contender.batches > 1:
            return model.describe(size), lambda: list(model.run_many([images] * contender.batches))
        return model.describe(size), lambda: model.run_all(images)
    return peers.prepare(contender.peer, model.manifest, contender.backend, size, normalise(pixels, model.preprocess))


def _peak_mb() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
