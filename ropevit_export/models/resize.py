"""Position tables of a checkpoint at another size, as the authors resize them: bicubic, or bilinear of Perception
Encoder, `align_corners=False`, without antialiasing (timm antialiases; its kernel is another one too).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from ropevit_export.models.spec import Interpolation, ModelSpec
from ropevit_export.values import Resolution, Weights

Grid = tuple[int, int]
_TABLE = "relative_position_bias_table"
_PERCEPTION = "bilinearly, and rotary positions are not scaled: as the authors do, where timm does otherwise"


def resize(spec: ModelSpec, weights: Weights, resolution: Resolution) -> Weights:
    """Weights whose absolute embedding and relative position bias are those of `resolution`."""
    sized = {}
    for name, tensor in weights.tensors.items():
        if name == "pos_embed":  # (1, prefix and grid tokens, C)
            assert weights.embed_grid is not None
            front, grid = tensor[0].tensor_split([spec.embedded_prefix])
            resized = _resized(grid, weights.embed_grid, spec.grid(resolution), spec.ape_resize)
            sized[name] = torch.cat([front, resized])[None]
        elif name.endswith(_TABLE):  # (relative positions, heads)
            assert weights.window is not None
            sized[name] = _resized(tensor, _offsets(weights.window), _offsets(spec.window(resolution)), "bicubic")
    return dataclasses.replace(weights, tensors={**weights.tensors, **sized})


def said(spec: ModelSpec, weights: Weights, resolution: Resolution) -> list[str]:
    """Sentences on what `resize` changes, and on windows that the size does not decide."""
    out = []
    grid, window = spec.grid(resolution), spec.window(resolution)
    if weights.embed_grid not in (None, grid):
        resized = f"the absolute embedding is resized from {_by(weights.embed_grid)} to {_by(grid)} patches"
        out.append(resized if spec.ape_resize == "bicubic" else f"{resized}, {_PERCEPTION}")
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


def _resized(table: torch.Tensor, given: Grid, size: Grid, interpolation: Interpolation) -> torch.Tensor:
    """(positions of the given grid, channels) → (rows·columns, channels)."""
    if given == size:
        return table
    image = table.T.reshape(1, -1, *given)
    image = F.interpolate(image, size=size, mode=interpolation, align_corners=False, antialias=False)
    return image[0].flatten(1).T.contiguous()
