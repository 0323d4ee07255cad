"""Window attention with rotary embedding, as RoPE-Swin has it in place of the relative position bias.

Written from Heo et al., arXiv:2403.13298, section 3, in PyTorch's own rotation of adjacent channel pairs, so that the
reference and the exported graph share no rotary code.
"""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.models import frequencies
from ropevit_export.models.spec import RopeSpec


class RopeWindowAttention(nn.Module):
    """Multi-head self attention in windows; queries and keys are turned by their position in the window.

    Parameters are those of timm's `WindowAttention`, with `rope_freqs` (2, heads, head_dim/2), angular frequencies
    in radians a token along x and y, in place of the bias table. Axial models have fixed ones, a buffer.
    """

    def __init__(self, *, dim: int, heads: int, window: tuple[int, int], rope: RopeSpec, device: str) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.rope = rope
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, device=device)
        self.proj = nn.Linear(dim, dim, device=device)
        freqs = torch.empty(2, heads, self.head_dim // 2, device=device)
        if rope.kind == "mixed":
            self.rope_freqs = nn.Parameter(freqs)
        else:
            self.register_buffer("rope_freqs", freqs, persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """timm calls this after loading; fills the fixed frequencies of an axial model."""
        if self.rope.kind == "axial":
            self.rope_freqs.copy_(torch.from_numpy(frequencies.axial(self.rope, self.head_dim)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x (B·windows, N, C), mask (windows, N, N) of 0 and -100 → (B·windows, N, C)."""
        count, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        turn = self._turn().to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        scores = (_rotate(q, turn) * self.head_dim**-0.5) @ _rotate(k, turn).transpose(-2, -1)
        if mask is not None:
            scores = scores.reshape(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]
            scores = scores.reshape(count, self.heads, tokens, tokens)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, dim))

    def _turn(self) -> torch.Tensor:
        """Unit complex numbers (heads, N, head_dim/2), one a channel pair."""
        rows, columns = self.window
        device = self.rope_freqs.device
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        freqs = self.rope_freqs[:, :, None].double()
        angle = x.reshape(-1, 1) * freqs[0] + y.reshape(-1, 1) * freqs[1]
        return torch.polar(torch.ones_like(angle), angle)


def _rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """In float32 where x is of 16 bits, which complex numbers don't come in."""
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
