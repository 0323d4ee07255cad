"""The deploy form of DeiT-III, at one size or at any up to a largest."""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.trace.attention import Attention, Mlp
from ropevit_export.trace.fold import Norm, PatchEmbed, Tensors, linear
from ropevit_export.trace.positions import FactorBank, Pair, ResizedEmbedding, TableBank
from ropevit_export.values import IoSpec, ModelSpec, Weights


class DeployDeit(nn.Module):
    """Patches, class token, blocks, head. Where only the class token is read, the last block computes no other.

    `positions` turns queries and keys, if the model does. `weights` are of the size, or for a dynamic graph the
    checkpoint's own.
    """

    cls_token: torch.Tensor
    pos_embed: torch.Tensor | None

    def __init__(self, spec: ModelSpec, weights: Weights, positions: TableBank | FactorBank | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, pixels=io.pixels)
        self.register_buffer("cls_token", tensors["cls_token"])
        dynamic = io.rope == "dynamic"
        self.register_buffer("pos_embed", None if dynamic else tensors.get("pos_embed"))
        limit = max(spec.grid(io.resolution))
        self.resized = ResizedEmbedding(tensors["pos_embed"], limit) if dynamic and spec.ape else None
        self.positions = positions
        last = len(spec.blocks) - 1
        self.blocks = nn.ModuleList(
            Block(spec, tensors, prefix, first_only=index == last and io.output != "tokens")
            for index, (prefix, _) in enumerate(spec.blocks)
        )
        self.norm = Norm(tensors, "norm", spec.norm_eps)
        self.head = linear(tensors, "head") if io.output == "logits" else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.embed(image)
        rows, columns = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        if self.resized is not None:
            x = x + self.resized(rows, columns)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        nothing: list[Pair | tuple[None, None]] = [(None, None)] * len(self.blocks)
        pairs = nothing if self.positions is None else self.positions(rows, columns)
        for block, pair in zip(self.blocks, pairs, strict=True):
            x = block(x, *pair)
        if self.io.output == "tokens":
            return self.norm(x)
        x = self.norm(x).flatten(1)  # one token is left
        return x if self.head is None else self.head(x)


class Block(nn.Module):
    def __init__(self, spec: ModelSpec, tensors: Tensors, prefix: str, *, first_only: bool) -> None:
        super().__init__()
        self.first_only = first_only
        self.norm1 = Norm(tensors, f"{prefix}norm1", spec.norm_eps)
        self.attention = Attention(
            tensors,
            prefix,
            heads=spec.heads[0],
            rotary=spec.rope.kind != "none",
            gain=tensors[f"{prefix}gamma_1"],
            first_only=first_only,
        )
        self.norm2 = Norm(tensors, f"{prefix}norm2", spec.norm_eps)
        self.mlp = Mlp(tensors, prefix, tensors[f"{prefix}gamma_2"])

    def forward(self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        y = self.attention(self.norm1(x), cos, sin)
        if self.first_only:
            x = x[:, :1]
        x = x + y
        return x + self.mlp(self.norm2(x))
