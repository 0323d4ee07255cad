"""Isotropic ViTs: their parameters, and their reference, timm's own modules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies as rotary
from ropevit_export.models.official import Official
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Output, Resolution, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ropevit_export.values import Array

# The periods of an axis' pairs where the file's are not the formula's: 2π over them is an angle's growth over one unit.
PERIODS = "rope.periods"
OPTIONAL: tuple[str, ...] = (PERIODS,)
_FLOAT32 = 1e-6  # what periods computed in float32 may differ by
# Official files also carry what follows from the architecture: positions and frequencies of axial models.
_BUFFERS = re.compile(r"(^|\.)(freqs_t_[xy]|t_[xy]|bands|pos_embed_rope)$")


def shapes(spec: ModelSpec, classes: int) -> dict[str, tuple[int, ...]]:
    """See `families.Knowledge`. `pos_embed` is the published file's; a fine-tuned one may have another grid."""
    dim, depth = spec.dims[0], spec.depths[0]
    out: dict[str, tuple[int, ...]] = {}
    if spec.class_token:
        out["cls_token"] = (1, 1, dim)
    if spec.registers:
        out["reg_token"] = (1, spec.registers, dim)
    if spec.ape:
        out["pos_embed"] = (1, spec.ape_grid**2, dim)
    if spec.rope.kind == "mixed":
        out["freqs"] = (2, depth, dim // 2)
    out |= {"patch_embed.proj.weight": (dim, 3, spec.patch, spec.patch), "patch_embed.proj.bias": (dim,)}
    for prefix, _ in spec.blocks:
        out |= {prefix + name: shape for name, shape in _block_shapes(spec).items()}
    norm = "fc_norm" if spec.norm_pooled else "norm"
    out |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    return out | ({"head.weight": (classes, dim), "head.bias": (classes,)} if classes else {})


def _block_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    dim, hidden = spec.dims[0], spec.mlp_width(0)
    out: dict[str, tuple[int, ...]] = {}
    if spec.layer_scale:
        out |= {"gamma_1": (dim,), "gamma_2": (dim,)}
    out["attn.qkv.weight"] = (3 * dim, dim)
    if spec.qkv_bias == "qkv":
        out["attn.qkv.bias"] = (3 * dim,)
    if spec.qkv_bias == "qv":
        out |= {"attn.q_bias": (dim,), "attn.v_bias": (dim,)}
    layers = {"attn.proj": (dim, dim)}
    if spec.mlp == "gelu":
        layers |= {"mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    else:
        layers |= {"mlp.fc1_g": (hidden, dim), "mlp.fc1_x": (hidden, dim), "mlp.fc2": (dim, hidden)}
    for name, shape in layers.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for norm in ("norm1", "norm2"):
        out |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    return out


def as_filed(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
    """See `families.Knowledge`: q and v have a bias if the file has one. timm fine-tunes on the mean of the patches
    with a norm behind it, `fc_norm`, in place of the one before.
    """
    if spec.qkv_bias == "optional" and any(name.endswith(("attn.q_bias", "attn.v_bias")) for name in tensors):
        spec = dataclasses.replace(spec, qkv_bias="qv")
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        spec = dataclasses.replace(spec, norm_pooled=True, pool="avg", head_pool=None)
    return spec


def unused(spec: ModelSpec) -> tuple[str, ...]:
    """See `families.Knowledge`."""
    return () if spec.ape else ("pos_embed",)


def official(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> Official:
    """See `families.Knowledge`. Of DINOv3's kind from three layouts, with the rotary periods that a file holds."""
    found = _dinov3(spec, tensors) if spec.rope.coordinates.centred else Official(tensors=_deit(tensors))
    if as_filed(spec, found.tensors).norm_pooled:
        said = "pooled is the mean over patches, normalised behind it, as the file's fc_norm says"
        return dataclasses.replace(found, choices=(*found.choices, said))
    return found


def _deit(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From the authors' layout or timm's."""
    out: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = re.sub(r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2", key)
        name = re.sub(r"^rope\.freqs$", "freqs", name)
        if _BUFFERS.search(name):
            continue
        if name == "freqs" and tensor.ndim == 4:  # timm keeps (2, depth, heads, pairs)
            tensor = tensor.flatten(2)
        if name in out:
            raise CheckpointError(f"{name} is there twice, once as {key}: the file mixes two layouts.")
        out[name] = tensor
    return out


def _dinov3(spec: ModelSpec, given: Mapping[str, torch.Tensor]) -> Official:
    from ropevit_export.models.dinov3_layouts import timm_layout

    converted = timm_layout(given)
    tensors, choices = dict(converted.tensors), []
    if converted.layout != "timm":
        choices.append(f"the file is in the layout of {converted.layout}")
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(("attn.q_bias", "attn.v_bias"))}
    if biases and spec.qkv_bias == "optional":
        used = any(bool(bias.any()) for bias in biases.values())
        tensors = tensors if used else {name: tensor for name, tensor in tensors.items() if name not in biases}
        choices.append(f"the file's biases of queries and values are {'used' if used else 'all 0, and left out'}")
    if converted.periods is not None:
        difference = _difference(spec, converted.periods)
        if difference > _FLOAT32:
            tensors[PERIODS] = converted.periods
            choices.append(
                f"rotary periods are the file's, which differ from theta {spec.rope.theta:g} by up to {difference:.1e}"
            )
    return Official(tensors=tensors, choices=tuple(choices))


def _difference(spec: ModelSpec, periods: torch.Tensor) -> float:
    """The largest relative difference from the formula's. Raises CheckpointError where there are more or fewer."""
    formula = spec.rope.magnitudes(spec.head_dim)
    if periods.shape != (len(formula),):
        raise CheckpointError(f"rotary periods are {tuple(periods.shape)}, {spec.short} needs ({len(formula)},).")
    return max(abs(float(period) * magnitude - 1) for period, magnitude in zip(periods, formula, strict=True))


def frequencies(spec: ModelSpec, weights: Weights) -> list[Array]:
    """See `families.Knowledge`."""
    depth = spec.depths[0]
    if spec.rope.kind == "none":
        return []
    if spec.rope.kind == "axial":
        periods = weights.tensors.get(PERIODS)
        magnitudes = None if periods is None else [1 / float(period) for period in periods]
        return [rotary.axial(spec.rope, spec.head_dim, magnitudes)] * depth
    learned = weights.tensors["freqs"].numpy().reshape(2, depth, spec.heads[0], -1)
    return [learned[:, block] for block in range(depth)]


def reference(spec: ModelSpec, weights: Weights, resolution: Resolution) -> nn.Module:
    """See `families.Knowledge`: timm's own model, its tensors replaced."""
    import timm

    own: dict[str, Any] = {}
    if spec.qkv_bias in ("qv", "optional"):
        own["qkv_bias"] = "blocks.0.attn.q_bias" in weights.tensors
    if "fc_norm.weight" in weights.tensors:
        own |= {"global_pool": "avg"} if spec.rope.kind == "none" else {"global_pool": "avg", "use_fc_norm": True}
    model: nn.Module = timm.create_model(
        spec.timm or "vit_small_patch16_rope_mixed_224",  # what timm lacks is of that form
        img_size=(resolution.height, resolution.width),
        patch_size=spec.patch,
        num_classes=weights.classes,
        embed_dim=spec.dims[0],
        depth=spec.depths[0],
        num_heads=spec.heads[0],
        device="meta",
        **own,
    )
    state = dict(weights.tensors)
    if (periods := state.pop(PERIODS, None)) is not None:  # timm computes them, in every place that fills buffers
        cast("Any", model).rope._compute_periods = lambda device="cpu", dtype=None: periods.to(device, dtype)
    if spec.rope.kind == "mixed":
        state["rope.freqs"] = state.pop("freqs").reshape(2, spec.depths[0], spec.heads[0], -1)
    if spec.rope.kind == "none":  # timm's plain DeiT-III is another class, which names LayerScale otherwise
        for name in [name for name in state if name.rpartition(".")[2] in ("gamma_1", "gamma_2")]:
            block, _, leaf = name.rpartition(".")
            state[f"{block}.ls{leaf[-1]}.gamma"] = state.pop(name)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def answers(model: Any, image: torch.Tensor, outputs: Sequence[Output]) -> list[torch.Tensor]:
    """See `families.Knowledge`: by timm's `forward_features` or `forward_intermediates`, its pooling and head."""
    blocks = sorted({output.block for output in outputs if output.block is not None})
    if not blocks:
        tokens, maps = model.forward_features(image), {}
    else:  # in the order of the blocks, whatever is asked for
        normed = all(output.normed for output in outputs)
        tokens, found = model.forward_intermediates(image, indices=blocks, norm=normed)
        maps = dict(zip(blocks, found, strict=True))
    return [_answer(model, tokens, maps, output) for output in outputs]


def _answer(model: Any, tokens: torch.Tensor, maps: Mapping[int, torch.Tensor], output: Output) -> torch.Tensor:
    if output.block is not None:
        return maps[output.block]
    if output.kind == "tokens":
        return tokens
    if output.kind == "cls":
        return tokens[:, 0]
    pooled: torch.Tensor = model.fc_norm(model.pool(tokens, pool_type=output.pool))
    logits: torch.Tensor = model.head(pooled) if output.kind == "logits" else pooled
    return logits
