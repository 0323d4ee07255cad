"""How long kernels would take on a named GPU at its published peak rates: an estimate, to compare engines with."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ropevit_export.errors import BundleError, UsageError
from ropevit_export.formats import PRECISIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """Published peak rates: bytes a second of memory, and operations a second by number format, dense, tensor cores
    adding up in float32 (fp32: without TF32). `sm`: compute capability. `source`: who published them.
    """

    name: str
    sm: str
    memory: float
    rates: Mapping[str, float]
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a kernel moves and multiplies, in bytes and FLOPs; `format`: of what it multiplies."""

    bytes: int
    flops: int
    format: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """`memory_milliseconds`: of these, spent in kernels that wait for memory rather than for arithmetic."""

    gpu: str
    milliseconds: float
    memory_milliseconds: float

    @property
    def waiting(self) -> float:
        """The part of the time that is spent so; none of the time of an engine that moves nothing."""
        return self.memory_milliseconds / self.milliseconds if self.milliseconds else 0.0


def gpus() -> tuple[Gpu, ...]:
    with Path(__file__).with_name("gpus.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(
            Gpu(
                name=row["name"],
                sm=row["sm"],
                memory=float(row["memory_gb_s"]) * 1e9,
                rates={name: float(row[name]) * 1e12 for name in PRECISIONS if row[name]},
                source=row["source"],
            )
            for row in csv.DictReader(stream)
        )


def find_gpu(name: str) -> Gpu:
    """By name, without regard to case, spaces and dashes."""
    known = gpus()
    for each in known:
        if _plain(each.name) == _plain(name):
            return each
    raise UsageError(f"no rates of a GPU {name!r} here: there are {', '.join(each.name for each in known)}.")


def seconds(work: Work, gpu: Gpu) -> tuple[float, float]:
    """What its bytes take and what its arithmetic takes; a kernel takes the longer. Raises BundleError."""
    if work.flops and work.format not in gpu.rates:
        raise BundleError(f"{gpu.name} (SM {gpu.sm}) has no published rate for {work.format} products: no estimate.")
    return work.bytes / gpu.memory, work.flops / gpu.rates[work.format] if work.flops else 0.0


def estimate(works: Iterable[Work], gpu: Gpu) -> Estimate:
    """Kernels one after the other, each at peak rate, every byte from memory: no launches, no caches."""
    taken = [seconds(each, gpu) for each in works]
    return Estimate(
        gpu=gpu.name,
        milliseconds=sum(max(both) for both in taken) * 1e3,
        memory_milliseconds=sum(memory for memory, arithmetic in taken if memory >= arithmetic) * 1e3,
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
