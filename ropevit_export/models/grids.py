"""Whether a file's position tables are on a grid or in a window that a model can have, and on which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ropevit_export.models.official import Shapes
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    import torch

Grid = tuple[int, int]


class Grids:
    """Whether shapes will do. Position tables may have been fine-tuned on another grid or window than the published
    one: `embed` and `windows` are what they are on. A square one can be told by its size, another must be a size asked
    for. A Swin has one window in all its stages.
    """

    def __init__(self, spec: ModelSpec, expected: Shapes, sizes: Sequence[Resolution]) -> None:
        self.expected = expected
        self.front = spec.embedded_prefix
        self.embed: Grid | None = None
        self.windows: set[Grid] = set()
        self._grids = [spec.grid(size) for size in sizes]
        self._windows = [spec.window(size) for size in sizes]

    def fault(self, name: str, tensor: torch.Tensor) -> str | None:
        """None if the shape will do."""
        expected, given = self.expected[name], tuple(tensor.shape)
        sentence = f"{name} {given}, needs {expected}"
        if name == "pos_embed" and len(given) == 3 and (given[0], given[2]) == (expected[0], expected[2]):
            self.embed = _grid(given[1] - self.front, self._grids)
            return None if self.embed else f"{sentence}, a square grid or that of a --res"
        if name.endswith("relative_position_bias_table") and len(given) == 2 and given[1] == expected[1]:
            doubled = _grid(given[0], [(2 * rows - 1, 2 * columns - 1) for rows, columns in self._windows])
            if doubled is None or doubled[0] % 2 == 0 or doubled[1] % 2 == 0:
                return sentence
            self.windows.add((doubled[0] // 2 + 1, doubled[1] // 2 + 1))
            return None
        if name == "patch_embed.proj.weight" and len(given) == 4 and given[1] != expected[1]:
            return f"{sentence}: {_channels(given[1])}"
        return None if given == expected else sentence


def _channels(count: int) -> str:
    """What to do about a model that was trained on images of other channels than three."""
    if count == 1:
        return (
            "it is of a model for gray images, and graphs take RGB. Gray pictures as RGB have equal channels: for them "
            "w.repeat(1, 3, 1, 1) / 3 in its place is the same model, with one --mean and one --std for all channels"
        )
    return f"it is of a model for images of {count} channels, and graphs take RGB: it can't be exported"


def _grid(count: int, asked: Iterable[Grid]) -> Grid | None:
    """Rows and columns of so many positions."""
    side = math.isqrt(max(count, 0))
    if side**2 == count and side:
        return side, side
    return next(((rows, columns) for rows, columns in asked if rows * columns == count), None)
