"""The one file of tolerances.

Each limit stands between the noise of right graphs and the error of the mildest wrong one, both measured by
`tests/test_tolerance.py` (all families, 224 to 384, seeded weights; errors over the reference's rms):

| precision | right graphs, worst | mildest wrong model | limit |
|---|---|---|---|
| fp32 | 6e-6 | NOISE | 1e-4 |
| fp16 | 4e-3 | NOISE | 2e-2 |
"""

from __future__ import annotations

from dataclasses import dataclass

from ropevit_export.values import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """`relative`: largest error over the reference's root mean square. `cosine`: of each sample, at least."""

    relative: float
    cosine: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, cosine=0.9999999),
    "fp16": Tolerance(relative=2e-2, cosine=0.9999),
}
