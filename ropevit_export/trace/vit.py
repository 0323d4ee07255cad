"""The deploy form of isotropic ViTs, at one size or at any up to a largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace.attention import Attention, AttentionPool
from ropevit_export.trace.fold import PatchEmbed, Tensors, linear, norm
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

    prefix: torch.Tensor | None
    pos_embed: torch.Tensor | None

    def __init__(self, spec: ModelSpec, weights: Weights, positions: TableBank | FactorBank | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, spec.transform, pixels=io.pixels)
        self.count = spec.prefix
        front, grid = embeddings(spec, tensors)
        prefix = [tensors[name] for name in PREFIX if name in tensors]
        self.register_buffer("prefix", (torch.cat(prefix, 1) + (0 if front is None else front)) if prefix else None)
        self.register_buffer("pos_embed", None if io.any_size else grid)
        limit = max(spec.grid(io.resolution))
        resized = weights.embed_grid if io.rope == "dynamic" else None
        self.resized = (
            None if grid is None or resized is None else ResizedEmbedding(grid, resized, limit, spec.ape_resize)
        )
        self.norm_pre = norm(spec, tensors, "norm_pre") if spec.pre_norm else nn.Identity()
        self.positions = positions
        last, first_only = last_block(spec, io.outputs), only_class_token(spec, io.outputs)
        self.blocks = nn.ModuleList(
            Block(spec, tensors, prefix, first_only=first_only and index == last)
            for index, (prefix, _) in enumerate(spec.blocks[: last + 1])
        )
        self.norm = norm(spec, tensors, "norm") if spec.final_norm else nn.Identity()
        pools = {output.pool for output in io.outputs}
        self.attn_pool = AttentionPool(spec, tensors, "attn_pool") if "map" in pools else None
        self.fc_norm = norm(spec, tensors, "fc_norm") if spec.pooled_norm else nn.Identity()
        self.head = linear(tensors, "head") if "logits" in io.output_names else None

    def forward(
        self,
        image: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        pos_embed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """`values.IoSpec.inputs` to its outputs, in order; all but the image are the host's, where it fills them."""
        x, rows, columns = self._tokens(image, pos_embed)
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

    def _tokens(self, image: torch.Tensor, pos_embed: torch.Tensor | None) -> tuple[torch.Tensor, int, int]:
        """What the first block reads, (B, T, C), and the rows and columns of the patches."""
        patches = self.embed(image)
        rows, columns = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2)
        embedding = self.pos_embed if pos_embed is None else pos_embed
        if self.resized is not None:
            embedding = self.resized(rows, columns)
        if embedding is not None:
            x = x + embedding
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        return self.norm_pre(x), rows, columns

    def _answer(
        self, output: Output, x: torch.Tensor, kept: Mapping[int, torch.Tensor], rows: int, columns: int
    ) -> torch.Tensor:
        if output.block is not None:
            return self._map(kept[output.block], rows, columns, normed=output.normed)
        if output.kind == "tokens":
            return self.norm(x)
        if output.kind == "cls":
            return self._pooled(x, "token")
        pooled = self.fc_norm(self._pooled(x, output.pool or "token"))
        return self.head(pooled) if output.kind == "logits" and self.head is not None else pooled

    def _map(self, x_BTC: torch.Tensor, rows: int, columns: int, *, normed: bool) -> torch.Tensor:
        """The patch tokens as (B, C, rows, columns)."""
        patches = x_BTC[:, self.count :]
        patches = self.norm(patches) if normed else patches
        return patches.transpose(1, 2).unflatten(2, (rows, columns))

    def _pooled(self, x_BTC: torch.Tensor, pool: Pool) -> torch.Tensor:
        """(B, C). The norm is every token's own, so what is not read is cut off before it."""
        if pool == "map":
            assert self.attn_pool is not None
            return self.attn_pool(self.norm(x_BTC))
        if pool == "avg":
            return self.norm(x_BTC[:, self.count :]).mean(1)
        return self.norm(x_BTC[:, :1]).flatten(1)


def embeddings(spec: ModelSpec, tensors: Tensors) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The absolute embedding of the tokens before the patches, and of the patches, each (1, T, C) or none."""
    if not spec.ape:
        return None, None
    front, grid = tensors["pos_embed"].tensor_split([spec.embedded_prefix], 1)
    return front if spec.embedded_prefix else None, grid


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
        self.norm1 = norm(spec, tensors, f"{prefix}norm1")
        self.attention = Attention(
            spec,
            tensors,
            f"{prefix}attn",
            heads=spec.heads[0],
            reorder=spec.rope.kind != "none" and spec.rope.layout == "adjacent",
            gain=tensors.get(f"{prefix}gamma_1"),
            first_only=first_only,
        )
        self.norm2 = norm(spec, tensors, f"{prefix}norm2")
        self.mlp = MLPS[spec.mlp](spec, tensors, f"{prefix}mlp", tensors.get(f"{prefix}gamma_2"))

    def forward(self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        # The class token's own norm: as a slice of all tokens' it would have to be kept, in float32, for two readers.
        first = x[:, :1] if self.first_only else None
        y = self.attention(self.norm1(x), cos, sin, query_token=None if first is None else self.norm1(first))
        x = (x if first is None else first) + y
        return x + self.mlp(self.norm2(x))
