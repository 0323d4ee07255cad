"""Position inputs: what a host feeds a graph that leaves its rotary tables and absolute embedding open.

Kept for any grid up to a largest as a table a column and a table a row, so that filling is one multiply-add an entry.
`docs/position-inputs.md` says the same for hosts in other languages.

Legend: L tables (1: one for all blocks) · R rows · C columns · T tokens (prefix first) · A heads (1: all alike) ·
P pairs · S side of the checkpoint's grid · W width of the model.
"""

from __future__ import annotations

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
    embedding of the patches (S, S, W) or none, whose grid need not be square, and which is resized by an interpolation.

    cos_x, sin_x (L, C, A, P) and cos_y, sin_y (L, R, A, P) of a model that turns; pos_embed as it is, under the name
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
        made[_EMBEDDINGS[interpolation]] = pos_embed
    return made


def names(made: Arrays) -> set[str]:
    """What `fill` makes of such parts."""
    tables = {"cos", "sin"} if any(name.startswith("cos_x") for name in made) else set()
    return tables | ({"pos_embed"} if not set(_EMBEDDINGS.values()).isdisjoint(made) else set())


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
        lines = _resized(embed.astype(np.float64), rows, interpolation)
        resized = _resized(lines.swapaxes(0, 1), columns, interpolation).swapaxes(0, 1)
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


def _resized(vectors: npt.NDArray[np.float64], extent: int, interpolation: str) -> npt.NDArray[np.float64]:
    """The first axis resized: `align_corners=False`, no antialiasing, edges repeated; in float64.

    Four products are added from the first tap to the last and by nothing else, so that a host in another language gets
    the same bits.
    """
    side = len(vectors)
    centre = (np.arange(extent) + 0.5) * side / extent - 0.5
    low = np.floor(centre).astype(np.int64) - 1
    total = np.zeros((extent, *vectors.shape[1:]))
    kernel = kernels.KERNELS[interpolation]
    for tap in (low, low + 1, low + 2, low + 3):
        weight = kernel(np.abs(centre - tap)).reshape(-1, *[1] * (vectors.ndim - 1))
        total += weight * vectors[np.clip(tap, 0, side - 1)]
    return total
