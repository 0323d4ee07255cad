"""The one file of tolerances.

Each limit stands between the noise of right graphs and the error of the mildest wrong one, both measured by
`tests/test_tolerance.py` and on bundles of all families, small to base, 224 to 384, seeded weights. Errors are over the
reference's root mean square. Wrong models: x and y swapped, pairs not reordered, theta of the other family, class token
turned, absolute embedding antialiased (the mildest: 224 to 208).

| precision | right graphs, worst | wrong models, mildest |
|---|---|---|
| fp32 | 5e-6, 1 - cosine below 1e-9 | 1.9e-2, 1 - cosine 1.5e-5 |
| fp16 | 6.6e-3, 1 - cosine 1.5e-6 | the same |
| bf16 | 5.0e-2, 1 - cosine 8.7e-5 (10 classes: 2.1e-4) | not judged by it: the mildest are below its rounding |
| int8 | 1.5e-1, 1 - cosine 7.1e-4 (10 classes: 2.0e-3) | the same |
| fp8 | 2.6e-1, 1 - cosine 3.3e-3 (10 classes: 2.9e-1, 6.1e-3) | the same |

A graph of less than 32 bits is judged twice: before it is rounded, by fp32's limits, which catch every wrong model; and
after, by its own, which then tell rounding from a conversion gone wrong.
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
    "fp32": Tolerance(relative=1e-4, cosine=0.99999999),
    "fp16": Tolerance(relative=1.5e-2, cosine=0.99999),
    "bf16": Tolerance(relative=1.5e-1, cosine=0.9993),
    "int8": Tolerance(relative=3e-1, cosine=0.995),
    "fp8": Tolerance(relative=8e-1, cosine=0.98),
}
