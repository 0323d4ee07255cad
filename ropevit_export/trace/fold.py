"""Exact algebra on weights, so that the graph has less to do. A folded weight is rounded once: where the fold is one
multiplication float32 does that by itself, where it is more it is computed in float64.

Legend: O outputs · I inputs · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ropevit_export.values import IMAGENET_MEAN, IMAGENET_STD

Tensors = Mapping[str, torch.Tensor]

# The graph multiplies raw pixels by this before the patch convolution. A power of two costs no accuracy, and keeps the
# convolution's folded weights near their trained size, where a 16-bit float still holds all their digits.
PIXEL_SCALE = 1 / 128


class Dense(nn.Module):
    """x @ weight_IO + bias_O. Stored as the graph needs it: no transpose to export or to fold."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI.T.contiguous())
        self.register_buffer("bias", bias_O)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Norm(nn.Module):
    """LayerNorm over the last axis."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tensors: Tensors, name: str, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", tensors[f"{name}.weight"])
        self.register_buffer("bias", tensors[f"{name}.bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def linear(tensors: Tensors, name: str, gain_O: torch.Tensor | None = None) -> Dense:
    """A linear layer, its outputs scaled by LayerScale where there is one."""
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    if gain_O is not None:
        weight = weight * gain_O[:, None]
        bias = None if bias is None else bias * gain_O
    return Dense(weight, bias)


def projections(tensors: Tensors, name: str, *, heads: int, rotary: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of q, k and v, with the attention scale in q.

    `rotary`: channels of q and k go from adjacent pairs to halves, x0 x2 … x1 x3 …: the same permutation in both leaves
    their products as they are, and the rotation needs no strided slice.
    """
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    head_dim = len(bias) // 3 // heads
    weights = list(weight.reshape(3, heads, head_dim, -1))
    biases = list(bias.reshape(3, heads, head_dim, 1))
    weights[0], biases[0] = weights[0] * head_dim**-0.5, biases[0] * head_dim**-0.5
    if rotary:
        order = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
        for part in (0, 1):
            weights[part], biases[part] = weights[part][:, order], biases[part][:, order]
    return [(w.flatten(0, 1), b.flatten()) for w, b in zip(weights, biases, strict=True)]


def dense(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Dense:
    """One matrix product for several projections of the same input."""
    weights, biases = zip(*parts, strict=True)
    return Dense(torch.cat(weights), torch.cat(biases))


class PatchEmbed(nn.Module):
    """Patches to channels; with `pixels` the ImageNet mean and standard deviation are in the weights.

    Exact because patches don't overlap and nothing is padded.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tensors: Tensors, *, pixels: bool) -> None:
        super().__init__()
        weight, bias = tensors["patch_embed.proj.weight"].double(), tensors["patch_embed.proj.bias"].double()
        self.stride = weight.shape[-1]
        self.pixels = pixels
        if pixels:
            mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)[:, None, None]
            std = torch.tensor(IMAGENET_STD, dtype=torch.float64)[:, None, None]
            bias = bias - (weight * mean / std).sum((1, 2, 3))
            weight = weight / (255 * std * PIXEL_SCALE)
        self.register_buffer("weight", weight.float().contiguous())
        self.register_buffer("bias", bias.float().contiguous())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float or (B, H, W, 3) uint8 → (B, C, rows, columns)."""
        if self.pixels:
            # Cast first: TensorRT does nothing else with uint8.
            image = image.to(torch.float32).permute(0, 3, 1, 2) * PIXEL_SCALE
        return nn.functional.conv2d(image, self.weight, self.bias, stride=self.stride)
