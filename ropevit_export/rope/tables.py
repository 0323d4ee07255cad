"""Cos and sin tables of 2-D rotary embedding.

Legend: R rows · C columns · T tokens (prefix first, then row-major grid) · A heads (1: all heads alike) · P pairs, half
of the head's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ropevit_export.models.spec import ModelSpec, RopeSpec
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.values import Factors, FloatArray, Tables

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RopeTable:
    """Angular frequencies on a grid, and the tables that follow from them.

    freqs (2, A, P): radians a column (x) and a row (y). Angles are computed in float64 and rounded once.
    """

    freqs: Float64Array
    rows: int
    columns: int
    prefix: int

    def factors(self) -> Factors:
        """((cos_x, sin_x) (C, A, P), (cos_y, sin_y) (R, A, P)); with angle x + y the full table is
        cos_x·cos_y - sin_x·sin_y and sin_x·cos_y + cos_x·sin_y: O(R + C) storage for any grid up to this one.
        """
        x = np.arange(self.columns)[:, None, None] * self.freqs[0]
        y = np.arange(self.rows)[:, None, None] * self.freqs[1]
        return _cos_sin(x), _cos_sin(y)

    def full(self) -> tuple[FloatArray, FloatArray]:
        """(cos, sin), each (T, A, P); prefix tokens get identity rows (1, 0)."""
        x = np.arange(self.columns)[None, :, None, None] * self.freqs[0]
        y = np.arange(self.rows)[:, None, None, None] * self.freqs[1]
        angle = (x + y).reshape(-1, *self.freqs.shape[1:])
        return _cos_sin(np.concatenate([np.zeros((self.prefix, *angle.shape[1:])), angle]))


def block_tables(spec: ModelSpec, learned: Mapping[str, FloatArray], resolution: Resolution) -> list[Tables] | None:
    """(cos, sin) of every block, for DeiT on the patch grid behind a class token, for Swin on the window.

    `learned`: frequencies by official name. Blocks that turn alike share their arrays. None for a plain model.
    """
    tables = _blocks(spec, learned, resolution)
    full = {id(table): table.full() for table in tables}
    return [full[id(table)] for table in tables] or None


def block_factors(spec: ModelSpec, learned: Mapping[str, FloatArray], limit: Resolution) -> list[Factors] | None:
    """The factors along x and y of every block, for grids up to that of `limit`; shared and None as above."""
    tables = _blocks(spec, learned, limit)
    factors = {id(table): table.factors() for table in tables}
    return [factors[id(table)] for table in tables] or None


def _blocks(spec: ModelSpec, learned: Mapping[str, FloatArray], resolution: Resolution) -> list[RopeTable]:
    deit = spec.family == "deit"
    grid, prefix = (spec.grid(resolution), 1) if deit else (spec.window(resolution), 0)
    if spec.rope.kind == "none":
        return []
    if spec.rope.kind == "axial":
        return [axial_table(spec.rope, head_dim=spec.head_dim, grid=grid, prefix=prefix)] * len(spec.blocks)
    if deit:
        freqs = learned["freqs"].reshape(2, spec.depths[0], spec.heads[0], -1)
        per_block = [freqs[:, block] for block in range(spec.depths[0])]
    else:
        per_block = [learned[f"{block}attn.rope_freqs"] for block, _ in spec.blocks]
    return [mixed_table(freqs, grid=grid, prefix=prefix) for freqs in per_block]


def axial_table(spec: RopeSpec, *, head_dim: int, grid: tuple[int, int], prefix: int) -> RopeTable:
    """Axial RoPE: the first half of the pairs turns with the column, the second with the row; all heads alike.

    Frequency i of head_dim/4 is theta^(-4i/head_dim). Source: Heo et al., arXiv:2403.13298, section 3.2.
    """
    quarter = head_dim // 4
    magnitude = spec.theta ** -(np.arange(quarter) / quarter)
    freqs = np.zeros((2, 1, 2 * quarter))
    freqs[0, 0, :quarter] = magnitude
    freqs[1, 0, quarter:] = magnitude
    return RopeTable(freqs=freqs, rows=grid[0], columns=grid[1], prefix=prefix)


def mixed_table(freqs: FloatArray, *, grid: tuple[int, int], prefix: int) -> RopeTable:
    """Mixed RoPE: every pair of every head turns with both coordinates, by learned frequencies (2, A, P).

    Source: Heo et al., arXiv:2403.13298, section 3.3.
    """
    return RopeTable(freqs=freqs.astype(np.float64), rows=grid[0], columns=grid[1], prefix=prefix)


def _cos_sin(angle: Float64Array) -> tuple[FloatArray, FloatArray]:
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
