"""The folded MLPs of a block."""

from __future__ import annotations

import torch
from torch import nn

from ropevit_export.models.spec import Mlp, ModelSpec
from ropevit_export.trace.fold import Dense, Tensors, bare_norm, linear


class GeluMlp(nn.Module):
    """Two linear layers around the exact GELU. `gain`: LayerScale."""

    def __init__(self, spec: ModelSpec, tensors: Tensors, name: str, gain: torch.Tensor | None) -> None:
        super().__init__()
        self.fc1 = linear(tensors, f"{name}.fc1")
        self.inner, self.fc2 = _second(spec, tensors, name, gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.inner(nn.functional.gelu(self.fc1(x))))


class SwiGlu(nn.Module):
    """fc2(silu(gate(x)) · value(x)). `gain`: LayerScale. Two products, also where a checkpoint has one matrix: with one
    of twice the width, split, TensorRT-RTX has as many kernels and moves 18 % more (eva02_small 336, fp16, 2 blocks).
    """

    def __init__(self, spec: ModelSpec, tensors: Tensors, name: str, gain: torch.Tensor | None) -> None:
        super().__init__()
        if spec.mlp == "packed_swiglu":
            halves = {f"fc1.{kind}": tensors[f"{name}.fc1.{kind}"].chunk(2) for kind in ("weight", "bias")}
            self.gate, self.value = (
                Dense(weight, bias) for weight, bias in zip(halves["fc1.weight"], halves["fc1.bias"], strict=True)
            )
        else:
            self.gate, self.value = (linear(tensors, f"{name}.fc1_{part}") for part in "gx")
        self.inner, self.fc2 = _second(spec, tensors, name, gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.inner(nn.functional.silu(self.gate(x)) * self.value(x)))


def _second(spec: ModelSpec, tensors: Tensors, name: str, gain: torch.Tensor | None) -> tuple[nn.Module, Dense]:
    """What is before the second layer, and the layer, with the norm's gain and bias if there is one."""
    inner = f"{name}.norm" if spec.mlp_norm else None
    before = nn.Identity() if inner is None else bare_norm(spec, tensors, inner)
    return before, linear(tensors, f"{name}.fc2", gain, after=inner)


MLPS: dict[Mlp, type[GeluMlp] | type[SwiGlu]] = {"gelu": GeluMlp, "swiglu": SwiGlu, "packed_swiglu": SwiGlu}
