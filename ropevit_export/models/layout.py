"""Which parameters a model has: names and shapes in the official file layout, and how other layouts map to it.

No torch; shapes follow from the row in `zoo.py`.
"""

from __future__ import annotations

import re

from ropevit_export.models.spec import ModelSpec

Shapes = dict[str, tuple[int, ...]]

# Official files also carry what follows from the architecture: positions, window indices, masks.
BUFFERS = re.compile(r"(^|\.)(freqs_t_[xy]|rope_t_[xy]|attn_mask|relative_position_index|t_[xy]|bands|pos_embed_rope)$")
# Axial Swin files carry their frequencies as a buffer; they are compared with the formula, not loaded.
AXIAL_FREQUENCIES = re.compile(r"(^|\.)rope_freqs$")


def shapes(spec: ModelSpec, *, classes: int | None = None) -> Shapes:
    """Name and shape of every parameter of the model as published, at 224, with its own number of classes or another.

    `pos_embed` has 14x14 tokens and a window's bias table 13x13 entries there; a fine-tuned file may have others.
    """
    classes = classes or spec.classes
    body = _deit_shapes(spec) if spec.family == "deit" else _swin_shapes(spec)
    width = spec.dims[-1]
    return body | {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }


def _deit_shapes(spec: ModelSpec) -> Shapes:
    dim, depth = spec.dims[0], spec.depths[0]
    out: Shapes = {"cls_token": (1, 1, dim)}
    if spec.ape:
        out["pos_embed"] = (1, 14 * 14, dim)
    if spec.rope.kind == "mixed":
        out["freqs"] = (2, depth, dim // 2)
    out |= {"patch_embed.proj.weight": (dim, 3, spec.patch, spec.patch), "patch_embed.proj.bias": (dim,)}
    for block in range(depth):
        out |= {f"blocks.{block}.gamma_1": (dim,), f"blocks.{block}.gamma_2": (dim,)}
        out |= _block_shapes(f"blocks.{block}.", dim)
    return out


def _swin_shapes(spec: ModelSpec) -> Shapes:
    dim = spec.dims[0]
    out: Shapes = {
        "patch_embed.proj.weight": (dim, 3, spec.patch, spec.patch),
        "patch_embed.proj.bias": (dim,),
        "patch_embed.norm.weight": (dim,),
        "patch_embed.norm.bias": (dim,),
    }
    for stage, (dim, depth, heads) in enumerate(zip(spec.dims, spec.depths, spec.heads, strict=True)):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            out |= _block_shapes(prefix, dim)
            if spec.rope.kind == "mixed":
                out[f"{prefix}attn.rope_freqs"] = (2, heads, spec.head_dim // 2)
            if spec.rope.kind == "none":
                out[f"{prefix}attn.relative_position_bias_table"] = (13 * 13, heads)
        if stage + 1 < len(spec.dims):
            prefix = f"layers.{stage}.downsample."
            out |= {
                f"{prefix}reduction.weight": (2 * dim, 4 * dim),
                f"{prefix}norm.weight": (4 * dim,),
                f"{prefix}norm.bias": (4 * dim,),
            }
    return out


def _block_shapes(prefix: str, dim: int) -> Shapes:
    linear = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    out: Shapes = {}
    for name, shape in linear.items():
        out |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
    for norm in ("norm1", "norm2"):
        out |= {f"{prefix}{norm}.weight": (dim,), f"{prefix}{norm}.bias": (dim,)}
    return out


def official_name(key: str, *, shifted_stages: bool) -> str:
    """The official name of a key in timm's layout; official keys come back as they are.

    `shifted_stages`: timm's Swin keeps a downsampling in the stage after it, the official one in the stage before.
    """
    key = re.sub(r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2", key)
    key = re.sub(r"^head\.fc\.", "head.", key)
    key = re.sub(r"^rope\.freqs$", "freqs", key)
    if shifted_stages:
        key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", key)
    return key
