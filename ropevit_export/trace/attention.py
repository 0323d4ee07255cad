"""Folded multi-head attention, in the form that runtimes fuse.

Legend: B batch (of images or windows) · T tokens · A heads · K head width.
"""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.trace.fold import Dense, Tensors, dense, linear, projections


class Attention(nn.Module):
    """Self attention with scale, LayerScale and pair order in the weights.

    `first_only`: only the first token is a query (the last block of a class-token model), all are keys and values.
    """

    def __init__(
        self, tensors: Tensors, prefix: str, *, heads: int, reorder: bool, gain: torch.Tensor | None, first_only: bool
    ) -> None:
        super().__init__()
        q, k, v = projections(tensors, f"{prefix}attn.qkv", heads=heads, reorder=reorder)
        self.heads = heads
        self.head_dim = len(q[0]) // heads
        self.query: Dense | None = dense([q]) if first_only else None
        self.qkv = dense([k, v] if first_only else [q, k, v])
        self.proj = linear(tensors, f"{prefix}attn.proj", gain)

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
        if cos is not None and sin is not None:
            x = rotate(x[:, :, :rotated], cos, sin)
        q, k = x[:, :, :heads], x[:, :, rotated - heads : rotated]
        if self.query is not None:
            assert query_token is not None
            # its table row is the identity: nothing to turn
            q = self.query(query_token).view(-1, 1, heads, width)
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            windows = mask.shape[0]
            scores = (scores.view(-1, windows, heads, tokens, tokens) + mask).view(-1, heads, tokens, tokens)
        out = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
        return self.proj(out.reshape(-1, q.shape[1], heads * width))


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
