"""The deploy form of Swin at one size, with rotary embedding or relative position bias.

Only attention and merges ask where a token is. So tokens lie window by window, where every other block takes them as
they are, and two by two in a stage's last MLP, where the merge does.

Legend: B batch · T tokens · R rows · C columns (of the stage's map) · N tokens of a window.
"""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace.attention import Attention
from ropevit_export.trace.fold import Norm, PatchEmbed, Tensors, linear
from ropevit_export.trace.mlp import MLPS
from ropevit_export.trace.positions import Pair, TableBank
from ropevit_export.values import IoSpec, Weights

Size = tuple[int, int]
PAIR: Size = (2, 2)


class DeploySwin(nn.Module):
    """Patches, four stages of window attention with a merge between, mean over the tokens, head."""

    def __init__(self, spec: ModelSpec, weights: Weights, positions: TableBank | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, spec.transform, pixels=io.pixels)
        self.embed_norm = Norm(tensors, "patch_embed.norm", spec.norm_eps)
        self.positions = positions
        window = self.window = spec.window(io.resolution)
        rows, columns = spec.grid(io.resolution)
        self.last_map = (rows >> len(spec.depths) - 1, columns >> len(spec.depths) - 1)
        self.blocks = nn.ModuleList()
        self.merges = nn.ModuleDict()
        for index, (prefix, stage) in enumerate(spec.blocks):
            size = (rows >> stage, columns >> stage)
            shifted = _is_odd(prefix)
            ends = spec.merges_after(index)
            block = Block(spec, tensors, prefix, stage=stage, size=size, window=window, shifted=shifted, ends=ends)
            self.blocks.append(block)
            if ends:
                self.merges[str(index)] = Merge(spec, tensors, stage, size, window)
        self.norm = Norm(tensors, "norm", spec.norm_eps)
        self.head = linear(tensors, "head") if "logits" in io.output_names else None

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.embed_norm(grouped(self.embed(image).permute(0, 2, 3, 1), self.window))
        nothing: list[Pair | tuple[None, None]] = [(None, None)] * len(self.blocks)
        pairs = nothing if self.positions is None else self.positions(*self.window)
        for index, (block, pair) in enumerate(zip(self.blocks, pairs, strict=True)):
            x = block(x, *pair)
            if str(index) in self.merges:
                x = self.merges[str(index)](x)
        x = self.norm(x)
        answers = []
        for output in self.io.outputs:
            answer = self._in_order(x) if output.kind == "tokens" else x.mean(1)
            answers.append(self.head(answer) if output.kind == "logits" and self.head is not None else answer)
        return tuple(answers)

    def _in_order(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Tokens of the last stage row by row; where it is one window, as it is by the authors' rule, they are."""
        size = self.last_map
        return x_BTC if size == self.window else mapped(x_BTC, size, self.window).flatten(1, 2)


class Block(nn.Module):
    """Attention in windows, shifted by half a window in every other block where the map is larger than the window.

    `ends`: a merge follows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Tensors,
        prefix: str,
        *,
        stage: int,
        size: Size,
        window: Size,
        shifted: bool,
        ends: bool,
    ) -> None:
        super().__init__()
        self.size, self.window, self.ends = size, window, ends
        heads = spec.heads[stage]
        self.shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
        self.norm1 = Norm(tensors, f"{prefix}norm1", spec.norm_eps)
        rotary = spec.rope.kind != "none"
        self.attention = Attention(spec, tensors, f"{prefix}attn", heads=heads, reorder=rotary)
        self.norm2 = Norm(tensors, f"{prefix}norm2", spec.norm_eps)
        self.mlp = MLPS[spec.mlp](spec, tensors, f"{prefix}mlp", None)
        bias = None if rotary else position_bias(tensors[f"{prefix}attn.relative_position_bias_table"], window)
        self.register_buffer("bias", bias)
        mask = shift_mask(size, window, self.shift) if any(self.shift) else None
        self.register_buffer("mask", None if mask is None else mask[:, None])

    def forward(self, x_BTC: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        """Tokens window by window → the same, or two by two where a merge follows."""
        (rows, columns), (high, wide), channels = self.size, self.window, x_BTC.shape[-1]
        # The norm is every token's own, so windows come first: an engine then gathers and normalises in one kernel.
        windows = self.norm1(self.shifted(x_BTC)).reshape(-1, high * wide, channels)
        answer = self.attention(windows, cos, sin, self.bias, self.mask)
        x_BTC = x_BTC + self.unshifted(answer.reshape(-1, rows * columns, channels))
        if self.ends:
            x_BTC = grouped(mapped(x_BTC, self.size, self.window), PAIR)
        # Of images and tokens as one axis, TensorRT takes Gelu and the sum into the products, on every GPU.
        x = x_BTC.reshape(-1, channels)
        return (x + self.mlp(self.norm2(x))).view(-1, rows * columns, channels)

    def shifted(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Windows to those half a window on."""
        return self._rolled(x_BTC, tuple(-steps for steps in self.shift))

    def unshifted(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """The inverse of `shifted`."""
        return self._rolled(x_BTC, self.shift)

    def _rolled(self, x_BTC: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
        if not any(steps):
            return x_BTC
        return grouped(torch.roll(mapped(x_BTC, self.size, self.window), steps, (1, 2)), self.window)


class Merge(nn.Module):
    """Two by two tokens, which lie side by side, become one of twice the channels.

    Channels of four neighbours come down, then right in a checkpoint, right, then down here: folded.
    """

    def __init__(self, spec: ModelSpec, tensors: Tensors, stage: int, size: Size, window: Size) -> None:
        super().__init__()
        self.merged, self.window = (size[0] // 2, size[1] // 2), window
        prefix = f"layers.{stage}.downsample."
        own = {name: tensors[prefix + name] for name in ("norm.weight", "norm.bias", "reduction.weight")}
        turned = {
            name: each.reshape(*each.shape[:-1], 2, 2, -1).transpose(-3, -2).flatten(-3) for name, each in own.items()
        }
        self.norm = Norm(turned, "norm", spec.norm_eps)
        self.reduction = linear(turned, "reduction")

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Tokens two by two → tokens of the next stage, window by window."""
        (rows, columns), channels = self.merged, x_BTC.shape[-1]
        x = self.reduction(self.norm(x_BTC.reshape(-1, rows * columns, 4 * channels)))
        return grouped(x.view(-1, rows, columns, x.shape[-1]), self.window)


def grouped(x_BRC: torch.Tensor, group: Size) -> torch.Tensor:
    """A map (B, R, C, channels) as tokens (B, T, channels), one group of rows by columns after the other."""
    (rows, columns, channels), (high, wide) = x_BRC.shape[1:], group
    x = x_BRC.reshape(-1, rows // high, high, columns // wide, wide, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, channels)


def mapped(x_BTC: torch.Tensor, size: Size, group: Size) -> torch.Tensor:
    """The inverse of `grouped`."""
    (rows, columns), (high, wide), channels = size, group, x_BTC.shape[-1]
    x = x_BTC.view(-1, rows // high, columns // wide, high, wide, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, channels)


def position_bias(table: torch.Tensor, window: Size) -> torch.Tensor:
    """Relative position bias (heads, N, N) from its table ((2r-1)·(2c-1), heads), row offset major."""
    y, x = (grid.flatten() for grid in torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij"))
    index = (y[:, None] - y + window[0] - 1) * (2 * window[1] - 1) + x[:, None] - x + window[1] - 1
    return table[index].permute(2, 0, 1).contiguous()


def shift_mask(size: Size, window: Size, shift: tuple[int, ...]) -> torch.Tensor:
    """(windows, N, N): -100 between tokens that only the cyclic shift brought into one window, else 0."""
    region_of = []
    for extent, moved in zip(size, shift, strict=True):
        at = torch.arange(extent)
        # The last window alone holds tokens of both ends.
        region_of.append((at >= extent - moved).long())
    region = region_of[0][:, None] * 2 + region_of[1]
    (rows, columns), (high, wide) = size, window
    region = region.view(rows // high, high, columns // wide, wide).permute(0, 2, 1, 3).reshape(-1, high * wide)
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)


def _is_odd(prefix: str) -> bool:
    return int(prefix.rstrip(".").rsplit(".", 1)[-1]) % 2 == 1
