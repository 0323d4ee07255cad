"""The deploy form of isotropic ViTs, at one size or at any up to a largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace.attention import Attention
from ropevit_export.trace.fold import Norm, PatchEmbed, Tensors, linear
from ropevit_export.trace.mlp import MLPS
from ropevit_export.trace.positions import FactorBank, Pair, ResizedEmbedding, TableBank, given_pairs
from ropevit_export.values import IoSpec, Output, Pool, Weights

# Tokens before the patches, in order.
PREFIX = ("cls_token", "reg_token")


class DeployVit(nn.Module):
    """Patches, prefix tokens, blocks, head. Where only the class token is read, the last block computes no other.

    `positions` turns queries and keys, if the model does and the host does not say how. `weights` are of the size, or
    where any size goes the checkpoint's own.
    """

    prefix: torch.Tensor
    pos_embed: torch.Tensor | None

    def __init__(self, spec: ModelSpec, weights: Weights, positions: TableBank | FactorBank | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, spec.transform, pixels=io.pixels)
        self.register_buffer("prefix", torch.cat([tensors[name] for name in PREFIX if name in tensors], 1))
        self.count = spec.prefix
        self.register_buffer("pos_embed", None if io.any_size else tensors.get("pos_embed"))
        limit = max(spec.grid(io.resolution))
        grid = weights.embed_grid if io.rope == "dynamic" else None
        self.resized = None if grid is None else ResizedEmbedding(tensors["pos_embed"], grid, limit)
        self.positions = positions
        last, first_only = last_block(spec, io.outputs), only_class_token(spec, io.outputs)
        self.blocks = nn.ModuleList(
            Block(spec, tensors, prefix, first_only=first_only and index == last)
            for index, (prefix, _) in enumerate(spec.blocks[: last + 1])
        )
        self.norm_pooled = spec.norm_pooled
        self.norm = Norm(tensors, "fc_norm" if spec.norm_pooled else "norm", spec.norm_eps)
        self.head = linear(tensors, "head") if "logits" in io.output_names else None

    def forward(
        self,
        image: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        pos_embed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """`values.IoSpec.inputs` to its outputs, in order; all but the image are the host's, where it fills them."""
        patches = self.embed(image)
        rows, columns = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2)
        embedding = self.pos_embed if pos_embed is None else pos_embed
        if self.resized is not None:
            embedding = self.resized(rows, columns)
        if embedding is not None:
            x = x + embedding
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        pairs: Sequence[Pair | tuple[None, None]] = [(None, None)] * len(self.blocks)
        if self.positions is not None:
            pairs = self.positions(rows, columns)
        elif cos is not None and sin is not None:
            pairs = given_pairs(cos, sin, len(self.blocks))
        kept = {}
        wanted = {output.block for output in self.io.outputs}
        for index, (block, pair) in enumerate(zip(self.blocks, pairs, strict=False)):  # fewer blocks may be read
            x = block(x, *pair)
            if index in wanted:
                kept[index] = x
        return tuple(self._answer(output, x, kept, rows, columns) for output in self.io.outputs)

    def _answer(
        self, output: Output, x_BTC: torch.Tensor, kept: Mapping[int, torch.Tensor], rows: int, columns: int
    ) -> torch.Tensor:
        """One output, from what the last block gives and what those that are read give."""
        if output.block is not None:
            return self._map(kept[output.block], rows, columns, normed=output.normed)
        if output.kind == "tokens":
            return x_BTC if self.norm_pooled else self.norm(x_BTC)
        if output.kind == "cls" and self.norm_pooled:
            return x_BTC[:, 0]
        pooled = self._pooled(x_BTC, output.pool or "token")
        return self.head(pooled) if output.kind == "logits" and self.head is not None else pooled

    def _map(self, x_BTC: torch.Tensor, rows: int, columns: int, *, normed: bool) -> torch.Tensor:
        """The patch tokens as (B, C, rows, columns)."""
        patches = x_BTC[:, self.count :]
        patches = self.norm(patches) if normed and not self.norm_pooled else patches
        return patches.transpose(1, 2).unflatten(2, (rows, columns))

    def _pooled(self, x_BTC: torch.Tensor, pool: Pool) -> torch.Tensor:
        """(B, C). A norm of all tokens is every token's own, so what is not read is cut off before it."""
        if self.norm_pooled:
            return self.norm(x_BTC[:, self.count :].mean(1) if pool == "avg" else x_BTC[:, 0])
        if pool == "avg":
            return self.norm(x_BTC[:, self.count :]).mean(1)
        return self.norm(x_BTC[:, :1]).flatten(1)


def last_block(spec: ModelSpec, outputs: Sequence[Output]) -> int:
    """The last block that an output depends on: those behind it are not in the graph."""
    depth = len(spec.blocks)
    return max(depth - 1 if output.block is None else output.block for output in outputs)


def only_class_token(spec: ModelSpec, outputs: Sequence[Output]) -> bool:
    """Whether of the last block nothing but the class token is read."""
    depth = len(spec.blocks)
    last = [output for output in outputs if output.block in (None, depth - 1)]
    return bool(last) and all(output.kind == "cls" or output.pool == "token" for output in last)


class Block(nn.Module):
    """`first_only`: only the first token is computed, from all."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, prefix: str, *, first_only: bool) -> None:
        super().__init__()
        self.first_only = first_only
        self.norm1 = Norm(tensors, f"{prefix}norm1", spec.norm_eps)
        self.attention = Attention(
            tensors,
            prefix,
            heads=spec.heads[0],
            reorder=spec.rope.kind != "none" and spec.rope.layout == "adjacent",
            gain=tensors.get(f"{prefix}gamma_1"),
            first_only=first_only,
        )
        self.norm2 = Norm(tensors, f"{prefix}norm2", spec.norm_eps)
        self.mlp = MLPS[spec.mlp](tensors, prefix, tensors.get(f"{prefix}gamma_2"))

    def forward(self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        # The class token's own norm: as a slice of all tokens' it would have to be kept, in float32, for two readers.
        first = x[:, :1] if self.first_only else None
        y = self.attention(self.norm1(x), cos, sin, query_token=None if first is None else self.norm1(first))
        x = (x if first is None else first) + y
        return x + self.mlp(self.norm2(x))
