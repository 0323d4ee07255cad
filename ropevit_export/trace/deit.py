"""The deploy form of DeiT-III at one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ropevit_export.trace.attention import Attention, Mlp, table_buffer
from ropevit_export.trace.fold import Norm, PatchEmbed, Tensors, linear
from ropevit_export.values import IoSpec, ModelSpec, Weights

if TYPE_CHECKING:
    from ropevit_export.values import Tables


class DeployDeit(nn.Module):
    """Patches, class token, blocks, head. Where only the class token is read, the last block computes no other."""

    cls_token: torch.Tensor
    pos_embed: torch.Tensor | None

    def __init__(self, spec: ModelSpec, weights: Weights, tables: Sequence[Tables] | None, io: IoSpec) -> None:
        super().__init__()
        tensors = weights.tensors
        self.io = io
        self.embed = PatchEmbed(tensors, pixels=io.pixels)
        self.register_buffer("cls_token", tensors["cls_token"])
        self.register_buffer("pos_embed", tensors.get("pos_embed"))
        self.tables = TableBank(tables, len(spec.blocks))
        last = len(spec.blocks) - 1
        self.blocks = nn.ModuleList(
            Block(spec, tensors, prefix, first_only=index == last and io.output != "tokens")
            for index, (prefix, _) in enumerate(spec.blocks)
        )
        self.norm = Norm(tensors, "norm", spec.norm_eps)
        self.head = linear(tensors, "head") if io.output == "logits" else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for index, block in enumerate(self.blocks):
            x = block(x, *self.tables(index))
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


class TableBank(nn.Module):
    """The rotary tables as buffers: blocks that share a table share the buffer, so the graph stores it once."""

    def __init__(self, tables: Sequence[Tables] | None, blocks: int) -> None:
        super().__init__()
        first: dict[int, int] = {}
        self.owner = [first.setdefault(id(pair), index) for index, pair in enumerate(tables or [])]
        self.blocks = blocks
        for index in first.values():
            assert tables is not None
            for kind, table in zip(("cos", "sin"), tables[index], strict=True):
                self.register_buffer(f"{kind}_{index}", table_buffer(torch.from_numpy(table)))

    def forward(self, block: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.owner:
            return None, None
        index = self.owner[block]
        return getattr(self, f"cos_{index}"), getattr(self, f"sin_{index}")
