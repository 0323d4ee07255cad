"""Exact algebra on weights, so that the graph has less to do. A folded weight is rounded once: where the fold is one
multiplication float32 does that by itself, where it is more it is computed in float64.

Legend: O outputs · I inputs · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ropevit_export.models.spec import Transform

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


# Weight (A·K, I) and bias (A·K) or none of a projection.
Projection = tuple[torch.Tensor, torch.Tensor | None]


def projections(tensors: Tensors, name: str, *, heads: int, reorder: bool) -> list[Projection]:
    """q, k and v, with the attention scale in q.

    `reorder`: channels of q and k go from adjacent pairs to halves, x0 x2 … x1 x3 …: the same permutation in both
    leaves their products as they are, and the rotation needs no strided slice.
    """
    weight = tensors[f"{name}.weight"]
    head_dim = len(weight) // 3 // heads
    weights = list(weight.reshape(3, heads, head_dim, -1))
    biases = [each if each is None else each.reshape(heads, head_dim, 1) for each in _biases(tensors, name)]
    parts = list(zip(weights, biases, strict=True))
    parts[0] = (weights[0] * head_dim**-0.5, None if biases[0] is None else biases[0] * head_dim**-0.5)
    if reorder:
        order = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
        for at in (0, 1):
            w, b = parts[at]
            parts[at] = (w[:, order], None if b is None else b[:, order])
    return [(w.flatten(0, 1), None if b is None else b.flatten()) for w, b in parts]


def _biases(tensors: Tensors, name: str) -> list[torch.Tensor | None]:
    """Of q, k and v, each (A·K): one tensor for all three in some checkpoints, those of q and v in others, or none."""
    if f"{name}.bias" in tensors:
        return list(tensors[f"{name}.bias"].chunk(3))
    owner = name.rpartition(".")[0]
    return [tensors.get(f"{owner}.q_bias"), None, tensors.get(f"{owner}.v_bias")]


def dense(parts: Sequence[Projection]) -> Dense:
    """One matrix product for several projections of the same input; a bias that only some have is 0 in the others."""
    weights, biases = [weight for weight, _ in parts], [bias for _, bias in parts]
    if all(bias is None for bias in biases):
        return Dense(torch.cat(weights), None)
    filled = [w.new_zeros(len(w)) if bias is None else bias for w, bias in parts]
    return Dense(torch.cat(weights), torch.cat(filled))


class PatchEmbed(nn.Module):
    """Patches to channels; for raw `pixels` the transform's mean and standard deviation are in the weights.

    Exact because patches don't overlap and nothing is padded.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tensors: Tensors, transform: Transform, *, pixels: bool) -> None:
        super().__init__()
        weight, bias = tensors["patch_embed.proj.weight"].double(), tensors["patch_embed.proj.bias"].double()
        self.stride = weight.shape[-1]
        self.pixels = pixels
        if pixels:
            mean = torch.tensor(transform.mean, dtype=torch.float64)[:, None, None]
            std = torch.tensor(transform.std, dtype=torch.float64)[:, None, None]
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
