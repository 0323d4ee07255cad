"""Run an artifact on samples and say how far its answers are from the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ropevit_export.formats import FORMATS, SIXTEEN_BITS
from ropevit_export.parity import compare
from ropevit_export.parity.tolerance import Tolerance
from ropevit_export.values import IoSpec, Resolution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ropevit_export.values import Array, Arrays

_ROUNDED = tuple(FORMATS[name].numpy for name in SIXTEEN_BITS)


class Runner(Protocol):
    """What is measured: `backends.base.Runner`, as far as it is used here."""

    @property
    def describe(self) -> str: ...

    def run(self, feeds: Arrays) -> Mapping[str, Array]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What an artifact is compared on at one size.

    images    in the format and layout that the graph takes, samples first
    host      what the host fills beside them, the same for every batch
    expected  the reference's answers by output, sample by sample
    """

    resolution: Resolution
    images: Array
    host: Arrays
    expected: Arrays


def measure(
    runner: Runner, artifact: str, io: IoSpec, sample: Sample, tolerance: Tolerance
) -> list[compare.ParityReport]:
    """Run an artifact on the samples, once for every batch size that its batch axis makes worth trying."""
    reports = []
    for batch in _batches(io, len(sample.images)):
        answers = [
            runner.run({io.image.name: sample.images[chosen], **sample.host})
            for chosen in chunks(batch, len(sample.images))
        ]
        reports += compared(artifact, io, sample, answers, runner.describe, tolerance)
    return reports


def compared(
    artifact: str,
    io: IoSpec,
    sample: Sample,
    answers: Sequence[Mapping[str, Array]],
    runtime: str,
    tolerance: Tolerance,
) -> list[compare.ParityReport]:
    """A report an output, from the answers to all batches of the samples (`chunks`)."""
    reports = []
    for output, theirs in sample.expected.items():
        ours = [answer[output] for answer in answers]
        batch = len(ours[0])
        answered = np.concatenate(ours)
        repeated = np.concatenate([theirs[chosen] for chosen in chunks(batch, len(theirs))])
        reports.append(
            compare.ParityReport(
                artifact=artifact,
                output=output,
                resolution=sample.resolution,
                batch=batch,
                inputs=f"seeded noise and {len(theirs) - 1} photographs{_rounding(io)}",
                reference="PyTorch float32, unfolded",
                runtime=runtime,
                metrics=compare.compare(answered, repeated, output),
                tolerance=tolerance,
                histogram=compare.histogram(answered, repeated),
            )
        )
    return reports


def chunks(batch: int, count: int) -> list[np.ndarray]:
    """Which samples each batch holds; the last one begins again where they run out."""
    return [np.arange(start, start + batch) % count for start in range(0, count, batch)]


def _batches(io: IoSpec, count: int) -> list[int]:
    """The static batch; or the smallest of a dynamic one, then one that holds every sample."""
    if io.batch.is_static:
        return [io.batch.min]
    return sorted({io.batch.min, min(max(io.batch.min, count), io.batch.max)})


def _rounding(io: IoSpec) -> str:
    """The reference sees the images unrounded: what the graph's input takes from them is part of its error."""
    return f", which the graph takes in {io.image.dtype}" if io.image.dtype in _ROUNDED else ""
