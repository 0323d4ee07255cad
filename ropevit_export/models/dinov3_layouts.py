"""DINOv3's weights from every layout that they are published in, under the names of timm's `Eva`.

Three layouts: timm's own; Meta's `.pth` files, which EUPE and LingBot share; transformers' `DINOv3ViT`, whose blocks
are `layer.N` in files and `model.layer.N` in the memory of versions from 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ropevit_export.errors import CheckpointError

Layout = Literal["timm", "transformers", "Meta"]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A file's weights under timm's names.

    tensors   biases of queries and values are there whenever the file has them, zero or not; what is not known keeps
              the file's name
    periods   (K/4,) of the rope as the file holds them, Meta's rounded to bfloat16; None where it holds none
    dropped   the file's names of what inference does not read or what went into another tensor
    """

    tensors: Tensors
    layout: Layout
    periods: torch.Tensor | None
    dropped: tuple[str, ...]


_MARKS: tuple[tuple[Layout, re.Pattern[str]], ...] = (
    ("transformers", re.compile(r"^embeddings\.|\.layer_scale[12]\.lambda1$")),
    (
        "Meta",
        re.compile(r"^(storage_tokens$|rope_embed\.)|\.(ls[12]\.gamma|attn\.qkv\.bias(_mask)?|mlp\.w[123]\.\w+)$"),
    ),
)
# mask_token, local_cls_norm and projectors are of pre-training; the rope's buffers follow from K and theta.
_DROPPED = re.compile(
    r"^(embeddings\.)?mask_token$|^local_cls_norm\.|^projectors\.|\.attn\.qkv\.bias_mask$"
    r"|^rope_embed\.periods$|^rope_embeddings\.inv_freq$|^rope\.(periods|bands|pos_embed\w*)$"
)
_META_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_TRANSFORMERS_BLOCK = re.compile(r"(?:model\.)?layer\.(\d+)\.(.+)")
_KEY_BIAS = re.compile(r"(?:model\.)?layer\.\d+\.attention\.k_proj\.bias")


def _of_modules(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{timm}.{leaf}" for theirs, timm in names.items() for leaf in ("weight", "bias")}


# Names within a block.
_META = {
    "ls1.gamma": "gamma_1",
    "ls2.gamma": "gamma_2",
    **_of_modules({"mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}),
}
_TRANSFORMERS = {
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "attention.q_proj.bias": "attn.q_bias",
    "attention.v_proj.bias": "attn.v_bias",
    **_of_modules({"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj"}),
    **_of_modules({"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}),
}
_TRANSFORMERS_GATED = _TRANSFORMERS | _of_modules({"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"})
# Names outside of blocks.
_META_TOP = {"storage_tokens": "reg_token"}
_TRANSFORMERS_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    **_of_modules({"embeddings.patch_embeddings": "patch_embed.proj"}),
}


def timm_layout(tensors: Tensors) -> Converted:
    """The tensors under timm's names, whatever layout they are in.

    Raises CheckpointError where keys have a bias that is not zero, for which timm's DINOv3 has no place (rotation makes
    it count), where a bias mask was never filled in, and where a file mixes layouts.
    """
    layout = _layout(tensors)
    dropped = tuple(name for name, tensor in tensors.items() if _is_dropped(name, tensor))
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if layout == "transformers":
        found = _from_transformers(kept)
    elif layout == "Meta":
        found = _from_meta(kept, masks=tensors)
    else:
        found = iter(kept.items())
    return Converted(tensors=_once(found), layout=layout, periods=_periods(tensors), dropped=dropped)


def _layout(tensors: Tensors) -> Layout:
    for layout, mark in _MARKS:
        if any(mark.search(name) for name in tensors):
            return layout
    return "timm"


def _is_dropped(name: str, tensor: torch.Tensor) -> bool:
    if _KEY_BIAS.fullmatch(name):
        _check_no_key_bias(name, tensor)
        return True
    # transformers keeps the parameter of a model without registers, with no rows
    return _DROPPED.search(name) is not None or (name == "embeddings.register_tokens" and tensor.numel() == 0)


def _periods(tensors: Tensors) -> torch.Tensor | None:
    for name in ("rope_embed.periods", "rope.periods"):
        if name in tensors:
            return tensors[name]
    inverse = tensors.get("rope_embeddings.inv_freq")
    return None if inverse is None else 1 / inverse.double()


def _once(found: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, tensor in found:
        if name in out:
            raise CheckpointError(f"{name} is there twice: the file mixes two layouts, keep one.")
        out[name] = tensor
    return out


def _from_meta(tensors: Tensors, masks: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        match = _META_BLOCK.fullmatch(name)
        if match and match[2] == "attn.qkv.bias":
            q, v = _masked(name, tensor, masks.get(f"{name}_mask"))
            yield f"blocks.{match[1]}.attn.q_bias", q
            yield f"blocks.{match[1]}.attn.v_bias", v
        else:
            yield _named(name, match, _META, _META_TOP), tensor


def _masked(name: str, bias: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Biases of queries and values out of Meta's `LinearKMaskedBias`, which adds `bias * bias_mask`.

    Its mask begins as NaN; initialisation fills in 1, 0 for keys. Published files may hold zeros throughout.
    """
    mask = torch.ones_like(bias) if mask is None else mask.to(bias.dtype)
    if bias.ndim != 1 or len(bias) % 3 or mask.shape != bias.shape:
        raise CheckpointError(f"{name} {tuple(bias.shape)}, its mask {tuple(mask.shape)}: needs (3 * width,) of both.")
    q_mask, k_mask, v_mask = mask.chunk(3)
    q, k, v = bias.chunk(3)
    if bool(q_mask.isnan().any() | v_mask.isnan().any()):
        raise CheckpointError(f"{name}_mask holds NaN for queries or values, needs 0 and 1: it was never filled in.")
    _check_no_key_bias(name, k * k_mask.nan_to_num(0))
    return q * q_mask, v * v_mask


def _check_no_key_bias(name: str, bias: torch.Tensor) -> None:
    if bool((bias != 0).any()):
        raise CheckpointError(
            f"{name} gives keys a bias of up to {float(bias.abs().max()):.2g}, which a DINOv3 does not have: "
            "needs zeros, take a checkpoint that was trained without key biases."
        )


def _from_transformers(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    fused, used = _fused(tensors)
    yield from fused.items()
    names = _TRANSFORMERS_GATED if any(".mlp.gate_proj." in name for name in tensors) else _TRANSFORMERS
    for name, tensor in tensors.items():
        if name not in used:
            yield _named(name, _TRANSFORMERS_BLOCK.fullmatch(name), names, _TRANSFORMERS_TOP), tensor


def _fused(tensors: Tensors) -> tuple[dict[str, torch.Tensor], set[str]]:
    """One matrix for queries, keys and values of each block that has all three, and the names they had."""
    fused: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for name in tensors:
        match = _TRANSFORMERS_BLOCK.fullmatch(name)
        parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        if not match or match[2] != "attention.q_proj.weight" or not tensors.keys() >= set(parts):
            continue
        shapes = {tuple(tensors[part].shape) for part in parts}
        if len(shapes) > 1:
            raise CheckpointError(f"{', '.join(parts)} have the shapes {sorted(shapes)}, need one and the same.")
        fused[f"blocks.{match[1]}.attn.qkv.weight"] = torch.cat([tensors[part] for part in parts])
        used |= set(parts)
    return fused, used


def _named(name: str, match: re.Match[str] | None, block: Mapping[str, str], top: Mapping[str, str]) -> str:
    """timm's name; what is in neither table keeps its own."""
    if match and match[2] in block:
        return f"blocks.{match[1]}.{block[match[2]]}"
    return top.get(name, name)
