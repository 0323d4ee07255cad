"""The deploy form of Swin at one size, with rotary embedding or relative position bias.

Legend: B batch · R rows · C columns (of the stage's map) · N tokens of a window.
"""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.trace.attention import Attention, Mlp
from ropevit_export.trace.fold import Norm, PatchEmbed, Tensors, linear
from ropevit_export.trace.positions import Pair, TableBank
from ropevit_export.values import IoSpec, ModelSpec, Weights

Size = tuple[int, int]


class DeploySwin(nn.Module):
    """Patches, four stages of window attention with a merge between, mean over the tokens, head."""

    def __init__(self, spec: ModelSpec, weights: Weights, positions: TableBank | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, pixels=io.pixels)
        self.embed_norm = Norm(tensors, "patch_embed.norm", spec.norm_eps)
        self.positions = positions
        window = self.window = spec.window(io.resolution)
        rows, columns = spec.grid(io.resolution)
        self.blocks = nn.ModuleList()
        self.merges = nn.ModuleDict()
        for index, (prefix, stage) in enumerate(spec.blocks):
            size = (rows >> stage, columns >> stage)
            shifted = _is_odd(prefix)
            self.blocks.append(Block(spec, tensors, prefix, stage=stage, size=size, window=window, shifted=shifted))
            if stage + 1 < len(spec.dims) and spec.blocks[index + 1][1] != stage:
                self.merges[str(index)] = Merge(spec, tensors, stage, size)
        self.norm = Norm(tensors, "norm", spec.norm_eps)
        self.head = linear(tensors, "head") if io.output == "logits" else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed_norm(self.embed(image).flatten(2).transpose(1, 2))
        nothing: list[Pair | tuple[None, None]] = [(None, None)] * len(self.blocks)
        pairs = nothing if self.positions is None else self.positions(*self.window)
        for index, (block, pair) in enumerate(zip(self.blocks, pairs, strict=True)):
            x = block(x, *pair)
            if str(index) in self.merges:
                x = self.merges[str(index)](x)
        x = self.norm(x)
        if self.io.output == "tokens":
            return x
        x = x.mean(1)
        return x if self.head is None else self.head(x)


class Block(nn.Module):
    """Attention in windows, shifted by half a window in every other block where the map is larger than the window."""

    def __init__(
        self, spec: ModelSpec, tensors: Tensors, prefix: str, *, stage: int, size: Size, window: Size, shifted: bool
    ) -> None:
        super().__init__()
        self.size, self.window = size, window
        heads = spec.heads[stage]
        self.shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
        self.norm1 = Norm(tensors, f"{prefix}norm1", spec.norm_eps)
        rotary = spec.rope.kind != "none"
        self.attention = Attention(tensors, prefix, heads=heads, rotary=rotary, gain=None, first_only=False)
        self.norm2 = Norm(tensors, f"{prefix}norm2", spec.norm_eps)
        self.mlp = Mlp(tensors, prefix, None)
        bias = None if rotary else position_bias(tensors[f"{prefix}attn.relative_position_bias_table"], window)
        self.register_buffer("bias", bias)
        mask = shift_mask(size, window, self.shift) if any(self.shift) else None
        self.register_buffer("mask", None if mask is None else mask[:, None])

    def forward(self, x_BTC: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        # The norm is every token's own, so windows come first: an engine then gathers and normalises in one kernel.
        windows = self.norm1(self.partition(x_BTC))
        x_BTC = x_BTC + self.restore(self.attention(windows, cos, sin, self.bias, self.mask))
        return x_BTC + self.mlp(self.norm2(x_BTC))

    def partition(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, channels) → (B·windows, N, channels)."""
        (rows, columns), (high, wide), channels = self.size, self.window, x_BTC.shape[-1]
        x = x_BTC.view(-1, rows, columns, channels)
        if any(self.shift):
            x = torch.roll(x, tuple(-s for s in self.shift), (1, 2))
        x = x.view(-1, rows // high, high, columns // wide, wide, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, high * wide, channels)

    def restore(self, windows: torch.Tensor) -> torch.Tensor:
        """The inverse of `partition`."""
        (rows, columns), (high, wide), channels = self.size, self.window, windows.shape[-1]
        x = windows.view(-1, rows // high, columns // wide, high, wide, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, channels)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        return x.reshape(-1, rows * columns, channels)


class Merge(nn.Module):
    """Two by two tokens become one of twice the channels; neighbours in the order down, then right."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, stage: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.norm = Norm(tensors, f"layers.{stage}.downsample.norm", spec.norm_eps)
        self.reduction = linear(tensors, f"layers.{stage}.downsample.reduction")

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        (rows, columns), channels = self.size, x_BTC.shape[-1]
        x = x_BTC.view(-1, rows // 2, 2, columns // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(-1, rows * columns // 4, 4 * channels)))


def position_bias(table: torch.Tensor, window: Size) -> torch.Tensor:
    """Relative position bias (heads, N, N) from its table ((2r-1)·(2c-1), heads), row offset major."""
    y, x = (grid.flatten() for grid in torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij"))
    index = (y[:, None] - y + window[0] - 1) * (2 * window[1] - 1) + x[:, None] - x + window[1] - 1
    return table[index].permute(2, 0, 1).contiguous()


def shift_mask(size: Size, window: Size, shift: tuple[int, ...]) -> torch.Tensor:
    """(windows, N, N): -100 between tokens that only the cyclic shift brought into one window, else 0."""
    region_of = []
    for extent, wide, moved in zip(size, window, shift, strict=True):
        at = torch.arange(extent)
        edges = (at >= extent - wide).long() + (at >= extent - moved).long()
        region_of.append(edges if moved else torch.zeros_like(at))
    region = region_of[0][:, None] * 3 + region_of[1]
    (rows, columns), (high, wide) = size, window
    region = region.view(rows // high, high, columns // wide, wide).permute(0, 2, 1, 3).reshape(-1, high * wide)
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)


def _is_odd(prefix: str) -> bool:
    return int(prefix.rstrip(".").rsplit(".", 1)[-1]) % 2 == 1
