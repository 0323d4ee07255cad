"""Position tables of a checkpoint at another size, as the authors resize them: bicubic, or bilinear of Perception
Encoder, `align_corners=False`, without antialiasing (timm antialiases; its kernel is another one too).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F

from ropevit_export.models.spec import Interpolation, ModelSpec
from ropevit_export.values import Resolution, Weights


def resize(spec: ModelSpec, weights: Weights, resolution: Resolution) -> Weights:
    """Weights whose absolute embedding and relative position bias are those of `resolution`."""
    sized = {}
    for name, tensor in weights.tensors.items():
        if name == "pos_embed":  # (1, prefix and grid tokens, C)
            front, grid = tensor[0].tensor_split([spec.embedded_prefix])
            sized[name] = torch.cat([front, _resized(grid, spec.grid(resolution), spec.ape_resize)])[None]
        elif name.endswith("relative_position_bias_table"):  # (relative positions, heads)
            rows, columns = spec.window(resolution)
            sized[name] = _resized(tensor, (2 * rows - 1, 2 * columns - 1), "bicubic")
    return dataclasses.replace(weights, tensors={**weights.tensors, **sized})


def _resized(table: torch.Tensor, size: tuple[int, int], interpolation: Interpolation) -> torch.Tensor:
    """(side·side, channels) → (rows·columns, channels)."""
    side = math.isqrt(table.shape[0])
    if (side, side) == size:
        return table
    image = table.T.reshape(1, -1, side, side)
    image = F.interpolate(image, size=size, mode=interpolation, align_corners=False, antialias=False)
    return image[0].flatten(1).T.contiguous()
