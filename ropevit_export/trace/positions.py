"""Where a graph has its position tables from: constants for one size; for any size, factors or the host.

Legend: R rows · C columns · T tokens (prefix first) · A heads (1: all alike) · P pairs · W width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ropevit_export import kernels
from ropevit_export.models.spec import Interpolation

if TYPE_CHECKING:
    from ropevit_export.values import Factors, Tables

Pair = tuple[torch.Tensor, torch.Tensor]


class TableBank(nn.Module):
    """Rotary tables of one size. Blocks that share a table share the buffer, so the graph stores it once."""

    def __init__(self, tables: Sequence[Tables]) -> None:
        super().__init__()
        self.owner = _owners(tables)
        for index in set(self.owner):
            for kind, table in zip(("cos", "sin"), tables[index], strict=True):
                self.register_buffer(f"{kind}_{index}", torch.from_numpy(table)[:, None, :, None].contiguous())

    def forward(self, rows: int, columns: int) -> list[Pair]:
        """(cos, sin) of every block, each (T, 1, A, 1, P), as `attention.rotate` broadcasts them."""
        return [(getattr(self, f"cos_{index}"), getattr(self, f"sin_{index}")) for index in self.owner]


class FactorBank(nn.Module):
    """Rotary tables of any size up to the stored one, from a table a column and a table a row.

    With angle x + y: cos = cos x cos y - sin x sin y, sin = sin x cos y + cos x sin y. Slices and one multiply-add, no
    trigonometry. `factors` as `rope.block_factors` gives them; `by_extent`: with a table of its own for every number of
    columns and rows.
    """

    one: torch.Tensor
    zero: torch.Tensor

    def __init__(self, factors: Sequence[Factors], *, prefix: int, by_extent: bool) -> None:
        super().__init__()
        self.by_extent = by_extent
        self.owner = _owners(factors)
        for index in set(self.owner):
            for axis, (cos, sin) in zip(("x", "y"), factors[index], strict=True):
                self.register_buffer(f"cos_{axis}_{index}", torch.from_numpy(cos.copy()))
                self.register_buffer(f"sin_{axis}_{index}", torch.from_numpy(sin.copy()))
        identity = torch.ones(prefix, 1, *factors[0][0][0].shape[1:])[:, :, :, None]
        self.register_buffer("one", identity)
        self.register_buffer("zero", torch.zeros_like(identity))

    def forward(self, rows: int, columns: int) -> list[Pair]:
        """As `TableBank`, for this grid."""
        made = {index: self._table(index, rows, columns) for index in dict.fromkeys(self.owner)}
        return [made[index] for index in self.owner]

    def _table(self, index: int, rows: int, columns: int) -> Pair:
        cos_x, sin_x = (self._part(f"{kind}_x_{index}", columns, 0) for kind in ("cos", "sin"))
        cos_y, sin_y = (self._part(f"{kind}_y_{index}", rows, 1) for kind in ("cos", "sin"))
        cos, sin = cos_x * cos_y - sin_x * sin_y, sin_x * cos_y + cos_x * sin_y
        return self._behind_prefix(cos, self.one), self._behind_prefix(sin, self.zero)

    def _part(self, name: str, extent: int, new_axis: int) -> torch.Tensor:
        """(1, extent, A, P) or (extent, 1, A, P). A table that is cut gets its new axis first: small ones then fold."""
        table: torch.Tensor = getattr(self, name)
        if self.by_extent:
            return table.narrow(0, extent * (extent - 1) // 2, extent).unsqueeze(new_axis)
        return table[None, :extent] if new_axis == 0 else table[:extent, None]

    @staticmethod
    def _behind_prefix(table_RCAP: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        table = table_RCAP.flatten(0, 1).unsqueeze(2).unsqueeze(1)
        return torch.cat([identity, table]) if len(identity) else table


def given_pairs(cos_LTAP: torch.Tensor, sin_LTAP: torch.Tensor, blocks: int) -> list[Pair]:
    """As `TableBank`, from the host's tables: one for all blocks, or one a block."""
    owner = [0] * blocks if len(cos_LTAP) == 1 else range(blocks)
    cos, sin = (table.unsqueeze(3).unsqueeze(2) for table in (cos_LTAP, sin_LTAP))
    return [(cos[index], sin[index]) for index in owner]


class ResizedEmbedding(nn.Module):
    """An absolute embedding resized in the graph, bicubically or bilinearly: `align_corners=False`, no antialiasing,
    edges repeated.

    Both are separable: a matrix (R, side) from the left and one (C, side) from the right. Their entries are the kernel
    at the distance of two centres, built from the size by arithmetic that every runtime has.
    """

    embed: torch.Tensor
    centres: torch.Tensor

    def __init__(
        self, embed_1TW: torch.Tensor, grid: tuple[int, int], limit: int, interpolation: Interpolation
    ) -> None:
        super().__init__()
        self.kernel = kernels.KERNELS[interpolation]
        self.grid = grid
        self.register_buffer("embed", embed_1TW.reshape(*grid, -1))
        self.register_buffer("centres", torch.arange(limit) + 0.5)
        # The kernel reaches two taps beyond each edge; their weights go to the edge itself.
        for suffix, side in {"": grid[0], "_x": grid[1]}.items():
            if suffix and grid[0] == grid[1]:
                continue  # of a square grid both axes share them
            reach = torch.arange(-2, side + 2)
            self.register_buffer(f"taps{suffix}", reach.float()[None])
            self.register_buffer(f"edges{suffix}", torch.eye(side)[reach.clamp(0, side - 1)])

    def forward(self, rows: int, columns: int) -> torch.Tensor:
        """(1, R·C, W)."""
        x = self._matrix(columns, "" if self.grid[0] == self.grid[1] else "_x") @ self.embed  # (rows of the file, C, W)
        y = self._matrix(rows) @ x.flatten(1)
        return y.reshape(1, rows * columns, -1)

    def _matrix(self, extent: int, axis: str = "") -> torch.Tensor:
        """(extent, side)."""
        taps, edges = getattr(self, f"taps{axis}"), getattr(self, f"edges{axis}")
        scale = edges.shape[1] / torch.scalar_tensor(extent, dtype=torch.float32)
        distance = (self.centres[:extent, None] * scale - 0.5 - taps).abs()
        return self.kernel(distance) @ edges


def _owners(pairs: Sequence[object]) -> list[int]:
    """For every block the first block that has the same pair."""
    first: dict[int, int] = {}
    return [first.setdefault(id(pair), index) for index, pair in enumerate(pairs)]
