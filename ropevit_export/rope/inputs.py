"""Position inputs: what a host feeds a graph that leaves its rotary tables and absolute embedding open.

Kept for any grid up to a largest as a table a column and a table a row, so that filling is one multiply-add an entry.
`docs/position-inputs.md` says the same for hosts in other languages.

Legend: L tables (1: one for all blocks) · R rows · C columns · T tokens (prefix first) · A heads (1: all alike) ·
P pairs · S side of the checkpoint's grid · W width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ropevit_export import kernels

if TYPE_CHECKING:
    from ropevit_export.values import Arrays, Factors, FloatArray

# What names end in where every extent has rows of its own, extent n from row n(n - 1)/2.
BY_EXTENT = "_by_extent"
# An absolute embedding's name by how it is resized: a host that knows only one then finds none, not a wrong one.
_EMBEDDINGS = {"bicubic": "pos_embed", "bilinear": "pos_embed_bilinear"}


def parts(
    factors: Sequence[Factors], pos_embed: FloatArray | None, *, by_extent: bool, interpolation: str = "bicubic"
) -> dict[str, FloatArray]:
    """What `fill` needs for grids up to a limit: the factors of each block (`tables.block_factors`) and an absolute
    embedding of the patches (1, S·S, W) or none, which is resized by an interpolation.

    cos_x, sin_x (L, C, A, P) and cos_y, sin_y (L, R, A, P) of a model that turns; pos_embed (S, S, W), under the name
    pos_embed_bilinear where that is how it is resized. With `by_extent` every number of columns and rows has a table of
    its own, and the names end in `_by_extent`.
    """
    made: dict[str, FloatArray] = {}
    distinct = list({id(each): each for each in factors}.values())
    ending = BY_EXTENT if by_extent else ""
    for axis, name in enumerate("xy"):
        for kind, label in enumerate(("cos", "sin")):
            if distinct:
                made[f"{label}_{name}{ending}"] = np.stack([each[axis][kind] for each in distinct])
    if pos_embed is not None:
        side = math.isqrt(pos_embed.shape[1])
        made[_EMBEDDINGS[interpolation]] = pos_embed.reshape(side, side, -1)
    return made


def fill(made: Arrays, rows: int, columns: int, prefix: int) -> dict[str, FloatArray]:
    """The inputs for a grid: `cos`, `sin` (L, T, A, P) and `pos_embed` (R·C, W), as far as `made` has parts for them.

    `prefix`: tokens before the patches. The caller sees to it that the grid is within the limit that the parts were
    made for.
    """
    filled: dict[str, FloatArray] = {}
    if any(name.startswith("cos_x") for name in made):
        cos_x, sin_x = (_part(made, f"{kind}_x", columns)[:, None] for kind in ("cos", "sin"))
        cos_y, sin_y = (_part(made, f"{kind}_y", rows)[:, :, None] for kind in ("cos", "sin"))
        filled["cos"] = _behind_prefix(cos_x * cos_y - sin_x * sin_y, prefix, 1.0)
        filled["sin"] = _behind_prefix(sin_x * cos_y + cos_x * sin_y, prefix, 0.0)
    for interpolation, name in _EMBEDDINGS.items():
        if name not in made:
            continue
        embed = made[name]
        y, x = (_resizing(extent, len(embed), interpolation) for extent in (rows, columns))
        resized = np.einsum("rs,stw,ct->rcw", y, embed, x, optimize=True)
        filled["pos_embed"] = resized.reshape(rows * columns, -1).astype(np.float32)
    return filled


def _part(made: Arrays, name: str, extent: int) -> FloatArray:
    """(L, extent, A, P): the first rows of a table, or those of this extent where each has its own."""
    if name in made:
        return made[name][:, :extent]
    start = extent * (extent - 1) // 2
    return made[name + BY_EXTENT][:, start : start + extent]


def _behind_prefix(grid_LRCAP: FloatArray, prefix: int, identity: float) -> FloatArray:
    tables, rows, columns, heads, pairs = grid_LRCAP.shape
    table = np.full((tables, prefix + rows * columns, heads, pairs), identity, np.float32)
    table[:, prefix:] = grid_LRCAP.reshape(tables, rows * columns, heads, pairs)
    return table


def _resizing(extent: int, side: int, interpolation: str) -> npt.NDArray[np.float64]:
    """(extent, side): resizing along one axis, `align_corners=False`, no antialiasing, edges repeated."""
    centre = (np.arange(extent) + 0.5) * side / extent - 0.5
    taps = np.floor(centre).astype(np.int64)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - taps)
    matrix = np.zeros((extent, side))
    np.add.at(
        matrix, (np.arange(extent)[:, None], np.clip(taps, 0, side - 1)), kernels.KERNELS[interpolation](distance)
    )
    return matrix
