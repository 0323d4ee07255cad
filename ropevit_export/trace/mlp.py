"""The folded MLPs of a block."""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.models.spec import Mlp
from ropevit_export.trace.fold import Tensors, linear


class GeluMlp(nn.Module):
    """Two linear layers around the exact GELU. `gain`: LayerScale."""

    def __init__(self, tensors: Tensors, prefix: str, gain: torch.Tensor | None) -> None:
        super().__init__()
        self.fc1 = linear(tensors, f"{prefix}mlp.fc1")
        self.fc2 = linear(tensors, f"{prefix}mlp.fc2", gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """fc2(silu(gate(x)) · value(x)). `gain`: LayerScale."""

    def __init__(self, tensors: Tensors, prefix: str, gain: torch.Tensor | None) -> None:
        super().__init__()
        self.gate = linear(tensors, f"{prefix}mlp.fc1_g")
        self.value = linear(tensors, f"{prefix}mlp.fc1_x")
        self.fc2 = linear(tensors, f"{prefix}mlp.fc2", gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.silu(self.gate(x)) * self.value(x))


MLPS: dict[Mlp, type[GeluMlp] | type[SwiGlu]] = {"gelu": GeluMlp, "swiglu": SwiGlu}
