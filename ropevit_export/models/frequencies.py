"""Angular frequencies of rotary embedding, in radians a unit of the coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.models.spec import RopeSpec

if TYPE_CHECKING:
    from ropevit_export.values import Array


def axial(rope: RopeSpec, head_dim: int, magnitudes: Sequence[float] | None = None) -> Array:
    """(2, 1, K/2), float64, along columns and rows, the same for all heads: half of the pairs turn with each.

    magnitudes: the K/4 frequencies of an axis, if not the formula's (`RopeSpec.magnitudes`).
    Source: Heo et al., arXiv:2403.13298, section 3.2.
    """
    found = rope.magnitudes(head_dim) if magnitudes is None else magnitudes
    quarter = len(found)
    freqs = np.zeros((2, 1, 2 * quarter))
    first, second = (0, 1) if rope.first == "columns" else (1, 0)
    freqs[first, 0, :quarter] = found
    freqs[second, 0, quarter:] = found
    return freqs
