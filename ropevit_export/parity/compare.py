"""Numbers that say how far two arrays are apart, and whether that is within tolerance. Pure NumPy, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ropevit_export.parity.tolerance import Tolerance
from ropevit_export.values import Resolution


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """`ours` against `theirs`, the reference.

    relative: max_abs over the reference's root mean square, so that one limit serves every checkpoint.
    cosine: the smallest of any sample. top1: the share of samples with the same largest logit (None: not logits).
    """

    samples: int
    max_abs: float
    mean_abs: float
    reference_rms: float
    relative: float
    cosine: float
    top1: float | None
    not_finite: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Errors over the reference's root mean square: `counts[i]` of 2^(lowest + i) or more and less than twice that,
    `exact` of nothing at all.
    """

    lowest: int
    counts: tuple[int, ...]
    exact: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """One output of an artifact at one size, compared on `inputs`."""

    artifact: str
    output: str
    resolution: Resolution
    batch: int
    inputs: str
    reference: str
    runtime: str
    metrics: Metrics
    tolerance: Tolerance
    histogram: Histogram | None = None

    @property
    def passed(self) -> bool:
        m, limit = self.metrics, self.tolerance
        return m.not_finite == 0 and m.relative <= limit.relative and m.cosine >= limit.cosine

    def sentence(self) -> str:
        m = self.metrics
        verdict = "within" if self.passed else "OUT OF"
        return (
            f"{self.artifact} at {self.resolution}, batch {self.batch}, {self.output}: "
            f"max error {m.max_abs:.1e}, {m.relative:.1e} of the reference's rms (limit {self.tolerance.relative:g}), "
            f"cosine {m.cosine:.8f} (limit {self.tolerance.cosine}), {m.not_finite} NaN or Inf: {verdict} tolerance"
        )


def compare(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating], output: str) -> Metrics:
    """Both (samples, ...), of the same shape."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {ours.shape} and {theirs.shape}")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    broken = int((~np.isfinite(a)).sum())
    if broken:
        nan = math.nan
        return Metrics(samples=len(a), max_abs=nan, mean_abs=nan, reference_rms=_rms(b), relative=nan, cosine=nan,
                       top1=None, not_finite=broken)  # fmt: skip
    error = np.abs(a - b)
    return Metrics(
        samples=len(a),
        max_abs=float(error.max()),
        mean_abs=float(error.mean()),
        reference_rms=_rms(b),
        relative=float(error.max()) / _rms(b) if error.any() else 0.0,
        cosine=_cosine(a, b),
        top1=float((a.argmax(-1) == b.argmax(-1)).mean()) if output == "logits" else None,
        not_finite=0,
    )


def histogram(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> Histogram | None:
    """None where there is nothing to count: a NaN or Inf, or a reference of nothing but zeros."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    rms = _rms(b)
    if not (np.isfinite(a).all() and rms):
        return None
    # The exponent of a float64 stands in its bits 52 to 62, and is 0 for zero and for what is smaller than any error.
    exponents = (np.abs((a - b) / rms).view(np.int64) >> 52).ravel()
    counted = np.bincount(exponents)
    exact, there = int(counted[0]), np.flatnonzero(counted[1:]) + 1
    if not len(there):
        return Histogram(lowest=0, counts=(), exact=exact)
    first, last = int(there[0]), int(there[-1])
    return Histogram(lowest=first - 1023, counts=tuple(counted[first : last + 1].tolist()), exact=exact)


def _rms(x: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt((x**2).mean()))


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.where(equal, 1.0, np.nan_to_num((a * b).sum(1) / product)).min())
