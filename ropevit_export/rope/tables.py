"""Cos and sin tables of 2-D rotary embedding, from angular frequencies and the coordinates of a grid.

Legend: R rows · C columns · T tokens (prefix first, then row-major grid) · A heads (1: all heads alike) · P pairs, half
of the head's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ropevit_export.models.spec import Coordinates

if TYPE_CHECKING:
    from ropevit_export.values import Array, Factors, FloatArray, Tables

Float64Array = npt.NDArray[np.float64]
Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rotation:
    """How one block turns its queries and keys.

    freqs (2, A, P): radians a unit of the coordinate along columns (x) and rows (y). Angles are computed in float64 and
    rounded once.
    """

    freqs: Array
    coordinates: Coordinates

    def full(self, grid: Grid, prefix: int) -> Tables:
        """(cos, sin), each (T, A, P); prefix tokens get identity rows (1, 0)."""
        angle = self._angles(grid[0], 1)[:, None] + self._angles(grid[1], 0)
        angle = angle.reshape(-1, *self.freqs.shape[1:])
        return _cos_sin(np.concatenate([np.zeros((prefix, *angle.shape[1:])), angle]))

    def factors(self, limit: Grid) -> Factors:
        """((cos_x, sin_x) (C, A, P), (cos_y, sin_y) (R, A, P)); with angle x + y the full table is
        cos_x·cos_y - sin_x·sin_y and sin_x·cos_y + cos_x·sin_y: O(R + C) storage for any grid up to `limit`.

        Where coordinates follow the extent, every extent n has rows of its own, from row n(n - 1)/2: O(R² + C²).
        """
        return _cos_sin(self._stored(limit[1], 0)), _cos_sin(self._stored(limit[0], 1))

    def _stored(self, limit: int, axis: int) -> Float64Array:
        if not self.coordinates.follow_extent:
            return self._angles(limit, axis)
        return np.concatenate([self._angles(extent, axis) for extent in range(1, limit + 1)])

    def _angles(self, extent: int, axis: int) -> Float64Array:
        """(extent, A, P)."""
        angles: Float64Array = along(self.coordinates, extent)[:, None, None] * self.freqs[axis].astype(np.float64)
        return angles


def along(coordinates: Coordinates, extent: int) -> Float64Array:
    """Where the tokens along an axis are, (extent,), as `models.spec.Coordinates` defines it."""
    index = np.arange(extent, dtype=np.float64)
    if coordinates.centred:
        return 2 * np.pi * ((2 * index + 1) / extent - 1)
    scale = 1.0 if coordinates.reference is None else coordinates.reference / extent
    return (index + coordinates.offset) * scale


def block_tables(freqs: Sequence[Array], coordinates: Coordinates, grid: Grid, prefix: int) -> list[Tables]:
    """(cos, sin) of every block, on a grid behind `prefix` tokens. Blocks that share their frequencies share arrays."""
    made = {id(each): Rotation(freqs=each, coordinates=coordinates).full(grid, prefix) for each in freqs}
    return [made[id(each)] for each in freqs]


def block_factors(freqs: Sequence[Array], coordinates: Coordinates, limit: Grid) -> list[Factors]:
    """The factors along x and y of every block, for grids up to `limit`; shared as above."""
    made = {id(each): Rotation(freqs=each, coordinates=coordinates).factors(limit) for each in freqs}
    return [made[id(each)] for each in freqs]


def _cos_sin(angle: Float64Array) -> tuple[FloatArray, FloatArray]:
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
