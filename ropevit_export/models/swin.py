"""Swin with rotary embedding or relative position bias: its parameters, and its reference on timm's Swin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies as rotary
from ropevit_export.models.official import Official
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Output, Resolution, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ropevit_export.values import Array

OPTIONAL: tuple[str, ...] = ()
# What follows from the architecture: window indices, masks, rotary tables.
_BUFFERS = re.compile(r"(^|\.)(rope_t_[xy]|attn_mask|relative_position_index)$")


def shapes(spec: ModelSpec, classes: int) -> dict[str, tuple[int, ...]]:
    """See `families.Knowledge`. A window's bias table has the published file's 13x13 entries."""
    dim, width = spec.dims[0], spec.dims[-1]
    out: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (dim, 3, spec.patch, spec.patch),
        "patch_embed.proj.bias": (dim,),
        "patch_embed.norm.weight": (dim,),
        "patch_embed.norm.bias": (dim,),
    }
    for index, (prefix, stage) in enumerate(spec.blocks):
        out |= {prefix + name: shape for name, shape in _block_shapes(spec, stage).items()}
        if spec.merges_after(index):
            out |= _merge_shapes(stage, spec.dims[stage])
    out |= {"norm.weight": (width,), "norm.bias": (width,)}
    return out | {"head.weight": (classes, width), "head.bias": (classes,)}


def _block_shapes(spec: ModelSpec, stage: int) -> dict[str, tuple[int, ...]]:
    dim, heads, hidden = spec.dims[stage], spec.heads[stage], spec.mlp_width(stage)
    layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for norm in ("norm1", "norm2"):
        out |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    if spec.rope.kind == "mixed":
        out["attn.rope_freqs"] = (2, heads, spec.head_dim // 2)
    if spec.rope.kind == "none":
        out["attn.relative_position_bias_table"] = (13 * 13, heads)
    return out


def _merge_shapes(stage: int, dim: int) -> dict[str, tuple[int, ...]]:
    prefix = f"layers.{stage}.downsample."
    return {
        f"{prefix}reduction.weight": (2 * dim, 4 * dim),
        f"{prefix}norm.weight": (4 * dim,),
        f"{prefix}norm.bias": (4 * dim,),
    }


def as_filed(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
    """See `families.Knowledge`."""
    return spec


def unused(spec: ModelSpec) -> tuple[str, ...]:
    """See `families.Knowledge`."""
    return ()


def official(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> Official:
    """See `families.Knowledge`: from timm's layout, which keeps a downsampling in the stage after it, the official one
    in the stage before.
    """
    shifted = any(key.startswith("layers.3.downsample.") for key in tensors)
    out: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = re.sub(r"^head\.fc\.", "head.", key)
        if shifted:
            name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
        if _BUFFERS.search(name):
            continue
        if name in out:
            raise CheckpointError(f"{name} is there twice, once as {key}: the file mixes two layouts.")
        out[name] = tensor
    return Official(tensors=out, window=_window(tensors))


def _window(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """From the masks of shifted windows, which official files hold: those of the first stage's map say its size too."""
    for name, mask in tensors.items():
        if re.fullmatch(r"layers\.0\.blocks\.\d+\.attn_mask", name) and mask.ndim == 3:
            count, side = math.isqrt(mask.shape[0]), math.isqrt(mask.shape[1])
            square = count**2 == mask.shape[0] and side**2 == mask.shape[1]
            if square and side and count != 8:  # the first stage's map is eight windows wide by the authors' rule
                return side, side
    return None


def frequencies(spec: ModelSpec, weights: Weights) -> list[Array]:
    """See `families.Knowledge`."""
    if spec.rope.kind == "none":
        return []
    if spec.rope.kind == "axial":
        return [rotary.axial(spec.rope, spec.head_dim)] * len(spec.blocks)
    return [weights.tensors[f"{prefix}attn.rope_freqs"].numpy() for prefix, _ in spec.blocks]


def reference(spec: ModelSpec, weights: Weights, resolution: Resolution) -> nn.Module:
    """See `families.Knowledge`: timm's Swin, with the attention of `rope_swin.py` where it turns."""
    import timm

    model: nn.Module = timm.create_model(
        spec.timm or "swin_tiny_patch4_window7_224",  # what timm lacks is of that form
        img_size=(resolution.height, resolution.width),
        window_size=spec.window(resolution),
        num_classes=weights.classes,
        embed_dim=spec.dims[0],
        depths=spec.depths,
        num_heads=spec.heads,
        device="meta",
    )
    if spec.rope.kind != "none":
        _install_rope(spec, model)
    model.load_state_dict(_timm_names(weights), strict=True, assign=True)
    return model


def answers(model: Any, image: torch.Tensor, outputs: Sequence[Output]) -> list[torch.Tensor]:
    """See `families.Knowledge`: by timm's `forward_features` and `forward_head`."""
    tokens = model.forward_features(image)
    return [
        tokens.flatten(1, 2) if output.kind == "tokens" else model.forward_head(tokens, output.kind == "pooled")
        for output in outputs
    ]


def _timm_names(weights: Weights) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights.tensors.items():
        if name.startswith("head."):
            name = name.replace("head.", "head.fc.")
        elif ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
        state[name] = tensor
    return state


def _install_rope(spec: ModelSpec, model: nn.Module) -> None:
    from ropevit_export.models.rope_swin import RopeWindowAttention

    for stage, heads in zip(model.layers, spec.heads, strict=True):  # type: ignore[arg-type]
        for block in stage.blocks:
            block.attn = RopeWindowAttention(
                dim=heads * spec.head_dim, heads=heads, window=block.window_size, rope=spec.rope, device="meta"
            )
