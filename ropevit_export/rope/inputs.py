"""Position inputs: what a host feeds a graph that leaves its rotary tables and absolute embedding open.

Kept for any grid up to a largest as a table a column and a table a row, so that filling is one multiply-add an entry.
`docs/position-inputs.md` says the same for hosts in other languages.

Legend: L tables (1: one for all blocks) · R rows · C columns · T tokens (class token first) · A heads (1: all alike) ·
P pairs · S side of the checkpoint's grid · W width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ropevit_export.models.spec import ModelSpec
from ropevit_export.rope.tables import block_factors
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.values import FloatArray

# Keys' coefficient, as PyTorch's bicubic interpolation has it.
_A = -0.75


def parts(
    spec: ModelSpec, learned: Mapping[str, FloatArray], pos_embed: FloatArray | None, limit: Resolution
) -> dict[str, FloatArray]:
    """What `fill` needs for grids up to that of `limit`, from an absolute embedding (1, S·S, W) or none.

    cos_x, sin_x (L, C, A, P) and cos_y, sin_y (L, R, A, P) of a model that turns; pos_embed (S, S, W).
    """
    made: dict[str, FloatArray] = {}
    factors = block_factors(spec, learned, limit) or []
    distinct = list({id(each): each for each in factors}.values())
    for axis, name in enumerate("xy"):
        for kind, label in enumerate(("cos", "sin")):
            if distinct:
                made[f"{label}_{name}"] = np.stack([each[axis][kind] for each in distinct])
    if pos_embed is not None:
        side = math.isqrt(pos_embed.shape[1])
        made["pos_embed"] = pos_embed.reshape(side, side, -1)
    return made


def fill(made: Mapping[str, FloatArray], rows: int, columns: int) -> dict[str, FloatArray]:
    """The inputs for a grid: `cos`, `sin` (L, T, A, P) and `pos_embed` (R·C, W), as far as `made` has parts for them.

    The caller sees to it that the grid is within the limit that the parts were made for.
    """
    filled: dict[str, FloatArray] = {}
    if "cos_x" in made:
        cos_x, sin_x = (made[name][:, None, :columns] for name in ("cos_x", "sin_x"))
        cos_y, sin_y = (made[name][:, :rows, None] for name in ("cos_y", "sin_y"))
        filled["cos"] = _with_class_token(cos_x * cos_y - sin_x * sin_y, 1.0)
        filled["sin"] = _with_class_token(sin_x * cos_y + cos_x * sin_y, 0.0)
    if "pos_embed" in made:
        embed = made["pos_embed"]
        y, x = (_cubic(extent, len(embed)) for extent in (rows, columns))
        resized = np.einsum("rs,stw,ct->rcw", y, embed, x, optimize=True)
        filled["pos_embed"] = resized.reshape(rows * columns, -1).astype(np.float32)
    return filled


def _with_class_token(grid_LRCAP: FloatArray, identity: float) -> FloatArray:
    tables, rows, columns, heads, pairs = grid_LRCAP.shape
    table = np.full((tables, 1 + rows * columns, heads, pairs), identity, np.float32)
    table[:, 1:] = grid_LRCAP.reshape(tables, rows * columns, heads, pairs)
    return table


def _cubic(extent: int, side: int) -> npt.NDArray[np.float64]:
    """(extent, side): bicubic resizing along one axis, `align_corners=False`, no antialiasing, edges repeated."""
    centre = (np.arange(extent) + 0.5) * side / extent - 0.5
    taps = np.floor(centre).astype(np.int64)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - taps)
    near, far = np.minimum(distance, 1), np.clip(distance, 1, 2)  # the kernel's two pieces are zero where they meet
    weight = ((_A + 2) * near - (_A + 3)) * near**2 + 1 + ((_A * far - 5 * _A) * far + 8 * _A) * far - 4 * _A
    matrix = np.zeros((extent, side))
    np.add.at(matrix, (np.arange(extent)[:, None], np.clip(taps, 0, side - 1)), weight)
    return matrix
