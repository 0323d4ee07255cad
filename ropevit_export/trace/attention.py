"""Folded multi-head attention, in the form that runtimes fuse.

Legend: B batch (of images or windows) · T tokens · A heads · K head width.
"""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace.fold import Dense, Tensors, bare_norm, dense, half_order, linear, norm, projections


class Attention(nn.Module):
    """Self attention with scale, LayerScale, pair order and the gain of a norm before its projection in the weights.

    `first_only`: only the first token is a query (the last block of a class-token model), all are keys and values.
    """

    def __init__(self, spec: ModelSpec, tensors: Tensors, name: str, *, heads: int, reorder: bool,
                 gain: torch.Tensor | None = None, first_only: bool = False) -> None:  # fmt: skip
        super().__init__()
        q, k, v = projections(tensors, name, heads=heads, reorder=reorder, scaled=not spec.qk_norm)
        self.heads = heads
        self.head_dim = len(q[0]) // heads
        self.query: Dense | None = dense([q]) if first_only else None
        self.qkv = dense([k, v] if first_only else [q, k, v])
        self.normed = HeadNorm(spec, tensors, name, heads=heads, reorder=reorder) if spec.qk_norm else None
        inner = f"{name}.norm" if spec.attention_norm else None
        self.norm = None if inner is None else bare_norm(spec, tensors, inner)
        self.proj = linear(tensors, f"{name}.proj", gain, after=inner)

    def forward(
        self,
        x_BTC: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        bias: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        query_token: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, T, C), tables (T, 1, A or 1, 1, K/2), bias (A, T, T), mask (windows, 1, T, T) → (B, T or 1, C).

        query_token (B, 1, C): the first token, where it is the only query.
        """
        tokens, heads, width = x_BTC.shape[1], self.heads, self.head_dim
        rotated = heads if self.query is not None else 2 * heads  # q and k turn together: one rotation a block
        x = self.qkv(x_BTC).view(-1, tokens, rotated + heads, width)
        v = x[:, :, rotated:]
        if self.normed is not None:
            x = self.normed(x[:, :, :rotated])
        if cos is not None and sin is not None:
            x = rotate(x[:, :, :rotated], cos, sin)
        q, k = x[:, :, :heads], x[:, :, rotated - heads : rotated]
        if self.query is not None:
            assert query_token is not None
            # its table row is the identity: nothing to turn
            q = self.query(query_token).view(-1, 1, heads, width)
            q = q if self.normed is None else self.normed(q, queries=True)
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            windows = mask.shape[0]
            scores = (scores.view(-1, windows, heads, tokens, tokens) + mask).view(-1, heads, tokens, tokens)
        out = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
        out = out.reshape(-1, q.shape[1], heads * width)
        return self.proj(out if self.norm is None else self.norm(out))


class HeadNorm(nn.Module):
    """The norms of queries and keys over a head's channels, in the order of the weights, the attention scale in that of
    the queries: in their matrix it would vanish.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, spec: ModelSpec, tensors: Tensors, name: str, *, heads: int, reorder: bool) -> None:
        super().__init__()
        self.heads = heads
        width = len(tensors[f"{name}.q_norm.weight"])
        order = half_order(width) if reorder else torch.arange(width)
        self.bare = bare_norm(spec, tensors, f"{name}.q_norm")
        for kind in ("weight", "bias"):
            if f"{name}.q_norm.{kind}" in tensors:
                q, k = (tensors[f"{name}.{part}_norm.{kind}"][order] for part in "qk")
                both = torch.cat([(q * width**-0.5).expand(heads, -1), k.expand(heads, -1)])
                self.register_buffer(kind, both)
            else:
                self.register_buffer(kind, None)

    def forward(self, x: torch.Tensor, *, queries: bool = False) -> torch.Tensor:
        """x (B, T, N, K): `queries`, keys, or queries and then keys."""
        heads, count = self.heads, x.shape[2]
        rows = slice(0, heads) if queries else slice(2 * heads - count, 2 * heads)
        y = self.bare(x) * self.weight[rows]
        return y if self.bias is None else y + self.bias[rows]


class AttentionPool(nn.Module):
    """All tokens asked by one learned query, which is a constant; then an MLP beside the sum (timm's
    `AttentionPoolLatent`).
    """

    query: torch.Tensor

    def __init__(self, spec: ModelSpec, tensors: Tensors, name: str) -> None:
        super().__init__()
        assert spec.map_heads is not None
        self.heads = spec.map_heads
        weight = tensors[f"{name}.q.weight"].double()
        query = weight @ tensors[f"{name}.latent"][0, 0].double() + tensors[f"{name}.q.bias"].double()
        self.width = len(query) // self.heads
        self.register_buffer("query", (query * self.width**-0.5).float().view(1, self.heads, 1, self.width))
        self.kv = linear(tensors, f"{name}.kv")
        self.proj = linear(tensors, f"{name}.proj")
        self.norm = norm(spec, tensors, f"{name}.norm")
        self.fc1, self.fc2 = (linear(tensors, f"{name}.mlp.{layer}") for layer in ("fc1", "fc2"))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, C) → (B, C)."""
        k, v = self.kv(x_BTC).view(-1, x_BTC.shape[1], 2 * self.heads, self.width).split(self.heads, 2)
        scores = self.query @ k.permute(0, 2, 3, 1)
        out = (scores.softmax(-1) @ v.transpose(1, 2)).reshape(-1, self.heads * self.width)
        y = self.proj(out)
        return y + self.fc2(nn.functional.gelu(self.fc1(self.norm(y))))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the half-layout pairs of x (B, T, N, K) by tables (T, 1, A or 1, 1, K/2); N is A heads of q, then of k.

    [a b] → [a b]·cos + [-b a]·sin: each table is read once, at half the head's width.
    """
    tokens, count, width = x.shape[1:]
    heads = cos.shape[2]
    groups = (count // heads, heads) if heads > 1 else (1, count)
    pairs = x.reshape(-1, tokens, *groups, 2, width // 2)
    a, b = pairs.chunk(2, -2)
    rotated = pairs * cos + torch.cat([-b, a], -2) * sin
    return rotated.reshape(-1, tokens, count, width)
