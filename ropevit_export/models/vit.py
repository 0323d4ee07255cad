"""Isotropic ViTs: their parameters, and their reference, timm's own modules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies as rotary
from ropevit_export.models.official import Official, Shapes
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


def shapes(spec: ModelSpec, classes: int) -> Shapes:
    """See `families.Knowledge`. `pos_embed` is the published file's; a fine-tuned one may have another grid."""
    dim, depth = spec.dims[0], spec.depths[0]
    out: Shapes = {}
    if spec.class_token:
        out["cls_token"] = (1, 1, dim)
    if spec.registers:
        out["reg_token"] = (1, spec.registers, dim)
    if spec.ape:
        out["pos_embed"] = (1, spec.embedded_prefix + spec.ape_grid**2, dim)
    if spec.rope.kind == "mixed":
        out["freqs"] = (2, depth, dim // 2)
    out["patch_embed.proj.weight"] = (dim, 3, spec.patch, spec.patch)
    if spec.pre_norm:
        out |= _norm(spec, "norm_pre", dim)
    else:
        out["patch_embed.proj.bias"] = (dim,)
    for block, (prefix, _) in enumerate(spec.blocks):
        out |= {prefix + name: shape for name, shape in _block_shapes(spec, block).items()}
    if spec.final_norm:
        out |= _norm(spec, "norm", dim)
    if spec.map_heads:
        out |= _map_shapes(spec)
    if spec.pooled_norm:
        out |= _norm(spec, "fc_norm", dim)
    return out | (_linear("head", classes, dim) if classes else {})


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(spec: ModelSpec, name: str, width: int) -> Shapes:
    gain: Shapes = {f"{name}.weight": (width,)}
    return gain if spec.norm == "rms" else gain | {f"{name}.bias": (width,)}


def _block_shapes(spec: ModelSpec, block: int) -> Shapes:
    dim, hidden = spec.dims[0], spec.mlp_width(0)
    scaled = {"both": ("gamma_1", "gamma_2"), "attention": ("gamma_1",), "none": ()}[spec.layer_scale]
    out: Shapes = dict.fromkeys(scaled, (dim,))
    out |= _attention_shapes(spec, block)
    if spec.mlp == "swiglu":
        out |= _linear("mlp.fc1_g", hidden, dim) | _linear("mlp.fc1_x", hidden, dim)
    else:
        out |= _linear("mlp.fc1", 2 * hidden if spec.mlp == "packed_swiglu" else hidden, dim)
    out |= _linear("mlp.fc2", dim, hidden)
    if spec.mlp_norm:
        out |= _norm(spec, "mlp.norm", hidden)
    return out | _norm(spec, "norm1", dim) | _norm(spec, "norm2", dim)


def _attention_shapes(spec: ModelSpec, block: int) -> Shapes:
    dim, out = spec.dims[0], Shapes()
    widths = {"q": dim, "k": dim, "v": dim}
    if spec.kv_heads is not None:
        widths |= dict.fromkeys("kv", spec.kv_heads[block] * spec.head_dim)
    biased = [part for part in widths if part in spec.qkv_bias] if spec.qkv_bias in ("qkv", "qv") else []
    if spec.qkv_split:
        out |= {f"attn.{part}_proj.weight": (width, dim) for part, width in widths.items()}
        out |= {f"attn.{part}_proj.bias": (widths[part],) for part in biased}
    else:
        out["attn.qkv.weight"] = (3 * dim, dim)
        out |= {"attn.qkv.bias": (3 * dim,)} if "k" in biased else {f"attn.{part}_bias": (dim,) for part in biased}
    out |= _linear("attn.proj", dim, dim)
    if spec.qk_norm:
        out |= _norm(spec, "attn.q_norm", spec.head_dim) | _norm(spec, "attn.k_norm", spec.head_dim)
    return out | (_norm(spec, "attn.norm", dim) if spec.attention_norm else {})


def _map_shapes(spec: ModelSpec) -> Shapes:
    dim = spec.dims[0]
    hidden = spec.map_hidden or 4 * dim
    layers = {
        "q": (dim, dim),
        "kv": (2 * dim, dim),
        "proj": (dim, dim),
        "mlp.fc1": (hidden, dim),
        "mlp.fc2": (dim, hidden),
    }
    out: Shapes = {"attn_pool.latent": (1, 1, dim)} | _norm(spec, "attn_pool.norm", dim)
    for name, (outputs, inputs) in layers.items():
        out |= _linear(f"attn_pool.{name}", outputs, inputs)
    return out


def as_filed(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
    """See `families.Knowledge`: q and v have a bias if the file has one. timm fine-tunes on the mean of the patches
    with a norm behind it, `fc_norm`, in place of the one before.
    """
    if spec.qkv_bias == "optional" and any(name.endswith(("attn.q_bias", "attn.v_bias")) for name in tensors):
        spec = dataclasses.replace(spec, qkv_bias="qv")
    if spec.final_norm and "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        spec = dataclasses.replace(spec, final_norm=False, pooled_norm=True, pool="avg", head_pool=None)
    return spec


def unused(spec: ModelSpec) -> tuple[str, ...]:
    """See `families.Knowledge`."""
    return () if spec.ape else ("pos_embed",)


def official(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> Official:
    """See `families.Knowledge`. Of DINOv3's kind from three layouts, with the rotary periods that a file holds."""
    from ropevit_export.models.authors_layouts import timm_layout

    found = timm_layout(tensors)
    if found is None:
        # Meta's bias of all three is timm's where keys have one
        published = spec.rope.coordinates.centred and spec.qkv_bias != "qkv"
        found = _dinov3(spec, tensors) if published else Official(tensors=_deit(tensors))
    if as_filed(spec, found.tensors) != spec and "fc_norm.weight" in found.tensors:
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
    learned = learned if spec.rope.first == "columns" else learned[::-1]
    return [learned[:, block] for block in range(depth)]


def reference(spec: ModelSpec, weights: Weights, resolution: Resolution) -> nn.Module:
    """See `families.Knowledge`: timm's own model, its tensors replaced."""
    from ropevit_export.models import timm_modules

    own: dict[str, Any] = {}
    if spec.qkv_bias == "optional":
        own["qkv_bias"] = "blocks.0.attn.q_bias" in weights.tensors
    if "fc_norm.weight" in weights.tensors and spec.timm:  # fine-tuned on the mean, if the name is not so by itself
        own |= {"global_pool": "avg"} if spec.rope.kind == "none" else {"global_pool": "avg", "use_fc_norm": True}
    model = timm_modules.build(spec, (resolution.height, resolution.width), weights.classes, **own)
    state = dict(weights.tensors)
    if (periods := state.pop(PERIODS, None)) is not None:  # timm computes them, in every place that fills buffers
        cast("Any", model).rope._compute_periods = lambda device="cpu", dtype=None: periods.to(device, dtype)
    if spec.rope.kind == "mixed":
        state["rope.freqs"] = state.pop("freqs").reshape(2, spec.depths[0], spec.heads[0], -1)
    if type(model).__name__ != timm_modules.CLASS:  # timm's plain DeiT-III, which names LayerScale otherwise
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
    from timm.layers import global_pool_nlc

    if output.block is not None:
        return maps[output.block]
    if output.kind == "tokens":
        return tokens
    if output.kind == "cls":
        return tokens[:, 0]
    if output.pool == "map":
        pooled = model.attn_pool(tokens)
    else:  # of a model that has attention pooling, its own `pool` gives nothing else
        pooled = global_pool_nlc(tokens, pool_type=output.pool, num_prefix_tokens=model.num_prefix_tokens)
    pooled = model.fc_norm(pooled)
    logits: torch.Tensor = model.head(pooled) if output.kind == "logits" else pooled
    return logits
