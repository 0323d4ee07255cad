"""Position tables of a checkpoint at another size, as the authors resize them: bicubic, `align_corners=False`, without
antialiasing (timm antialiases; for smaller sizes the two differ).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Resolution, Weights

Grid = tuple[int, int]
_TABLE = "relative_position_bias_table"


def resize(spec: ModelSpec, weights: Weights, resolution: Resolution) -> Weights:
    """Weights whose absolute embedding and relative position bias are those of `resolution`."""
    sized = {}
    for name, tensor in weights.tensors.items():
        if name == "pos_embed":  # (1, grid tokens, C)
            assert weights.embed_grid is not None
            sized[name] = _bicubic(tensor[0], weights.embed_grid, spec.grid(resolution))[None]
        elif name.endswith(_TABLE):  # (relative positions, heads)
            assert weights.window is not None
            sized[name] = _bicubic(tensor, _offsets(weights.window), _offsets(spec.window(resolution)))
    return dataclasses.replace(weights, tensors={**weights.tensors, **sized})


def said(spec: ModelSpec, weights: Weights, resolution: Resolution) -> list[str]:
    """Sentences on what `resize` changes, and on windows that the size does not decide."""
    out = []
    grid, window = spec.grid(resolution), spec.window(resolution)
    if weights.embed_grid not in (None, grid):
        out.append(f"the absolute embedding is resized from {_by(weights.embed_grid)} to {_by(grid)} patches")
    if spec.window_of is None:
        return out
    rule = dataclasses.replace(spec, own_window=None).window(resolution)
    if window != rule:
        out.append(
            f"windows are {_by(window)} tokens at {resolution}, the authors' rule gives {_by(rule)}: --window chooses"
        )
    elif any(name.endswith(_TABLE) for name in weights.tensors):
        if weights.window != window:
            out.append(
                f"windows are {_by(window)} tokens at {resolution}, bias tables resized from {_by(weights.window)}"
            )
    elif weights.window is None:
        out.append(
            f"windows are {_by(window)} tokens at {resolution}, size // {spec.window_of}, which the file can't say: "
            "--window chooses"
        )
    return out


def _by(grid: Grid | None) -> str:
    return "x".join(map(str, grid or ()))


def _offsets(window: Grid) -> Grid:
    """Rows and columns of a bias table: relative positions within a window."""
    return 2 * window[0] - 1, 2 * window[1] - 1


def _bicubic(table: torch.Tensor, given: Grid, size: Grid) -> torch.Tensor:
    """(positions of the given grid, channels) → (rows·columns, channels)."""
    if given == size:
        return table
    image = table.T.reshape(1, -1, *given)
    image = F.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=False)
    return image[0].flatten(1).T.contiguous()
