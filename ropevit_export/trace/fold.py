"""Exact algebra on weights, so that the graph has less to do. A folded weight is rounded once: where the fold is one
multiplication float32 does that by itself, where it is more it is computed in float64.

Legend: O outputs · I inputs · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ropevit_export.models.spec import ModelSpec, Transform

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


class RmsNorm(nn.Module):
    """x / sqrt(mean of x² over the last axis + eps) · weight."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


def norm(spec: ModelSpec, tensors: Tensors, name: str) -> Norm | RmsNorm:
    """The model's kind of norm."""
    if spec.norm == "rms":
        return RmsNorm(tensors[f"{name}.weight"], spec.norm_eps)
    return Norm(tensors, name, spec.norm_eps)


def bare_norm(spec: ModelSpec, tensors: Tensors, name: str) -> Norm | RmsNorm:
    """The same without gain and bias, which `linear` then takes into the layer that follows."""
    weight = torch.ones_like(tensors[f"{name}.weight"])
    bare = {f"{name}.weight": weight, f"{name}.bias": torch.zeros_like(weight)}
    return norm(spec, bare, name)


def linear(tensors: Tensors, name: str, gain_O: torch.Tensor | None = None, after: str | None = None) -> Dense:
    """A linear layer, its outputs scaled by LayerScale where there is one.

    after: the norm before it, whose gain and bias it takes: W (g · x + b) + c = (W · g) x + (W b + c).
    """
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    if after is not None:
        weight, bias = _behind(tensors, after, weight.double(), bias)
    if gain_O is not None:
        weight = weight * gain_O[:, None]
        bias = None if bias is None else bias * gain_O
    return Dense(weight.float(), None if bias is None else bias.float())


def _behind(
    tensors: Tensors, norm: str, weight_OI: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    gain, shift = tensors[f"{norm}.weight"].double(), tensors.get(f"{norm}.bias")
    if shift is not None:
        moved = weight_OI @ shift.double()
        bias = moved if bias is None else bias.double() + moved
    return weight_OI * gain, bias


# Weight (A·K, I) and bias (A·K) or none of a projection.
Projection = tuple[torch.Tensor, torch.Tensor | None]


def projections(tensors: Tensors, name: str, *, heads: int, reorder: bool, scaled: bool = True) -> list[Projection]:
    """q, k and v of the attention `name`, from one matrix or from three, with the attention scale in q if `scaled`.

    `reorder`: channels of q and k go from adjacent pairs to halves, x0 x2 … x1 x3 …: the same permutation in both
    leaves their products as they are, and the rotation needs no strided slice. Where keys and values have fewer heads
    than queries their rows are repeated: head h of the queries asks head h // group.
    """
    parts = []
    for weight, bias in zip(_weights(tensors, name), _biases(tensors, name), strict=True):
        split = [weight.reshape(-1, _head_dim(tensors, name, heads), weight.shape[1])]
        split += [] if bias is None else [bias.reshape(*split[0].shape[:2], 1)]
        w, *b = (each.repeat_interleave(heads // len(each), 0) for each in split)
        parts.append((w, b[0] if b else None))
    if scaled:
        parts[0] = _times(parts[0], parts[0][0].shape[1] ** -0.5)
    if reorder:
        order = half_order(parts[0][0].shape[1])
        for at in (0, 1):
            w, bias = parts[at]
            parts[at] = (w[:, order], None if bias is None else bias[:, order])
    return [(w.flatten(0, 1), None if bias is None else bias.flatten()) for w, bias in parts]


def half_order(head_dim: int) -> torch.Tensor:
    """Channels of a head from adjacent pairs to halves."""
    return torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])


def _times(part: Projection, factor: float) -> Projection:
    weight, bias = part
    return weight * factor, None if bias is None else bias * factor


def _head_dim(tensors: Tensors, name: str, heads: int) -> int:
    return len(_weights(tensors, name)[0]) // heads


def _weights(tensors: Tensors, name: str) -> list[torch.Tensor]:
    """Of q, k and v, each (A·K, I)."""
    if f"{name}.qkv.weight" in tensors:
        return list(tensors[f"{name}.qkv.weight"].chunk(3))
    return [tensors[f"{name}.{part}_proj.weight"] for part in "qkv"]


def _biases(tensors: Tensors, name: str) -> list[torch.Tensor | None]:
    """Of q, k and v, each (A·K): one tensor for all three in some checkpoints, those of q and v in others, or none."""
    if f"{name}.qkv.bias" in tensors:
        return list(tensors[f"{name}.qkv.bias"].chunk(3))
    return [tensors.get(f"{name}.{part}_bias", tensors.get(f"{name}.{part}_proj.bias")) for part in "qkv"]


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
        weight = tensors["patch_embed.proj.weight"].double()
        bias = tensors.get("patch_embed.proj.bias", weight.new_zeros(len(weight))).double()
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
