"""Rows of the rotary ViTs of timm's `Eva` class beside those of `zoo.py`: EVA-02 and EVA-02-CLIP (Fang et al.,
arXiv:2303.11331; Sun et al., arXiv:2303.15389), Perception Encoder (Bolya et al., arXiv:2504.13181), timm's own ViTs
with registers and averaged patches, and Sapiens2 (Khirodkar et al., arXiv:2604.21681).
"""

from __future__ import annotations

import dataclasses

from ropevit_export.models.spec import Coordinates, HubFile, ModelSpec, RopeSpec, Transform

_IMAGENET = Transform(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", crop=1.0, crop_mode="squash"
)
# The authors' own, where timm's configuration of some sizes has 0.9 and of some weights a squash.
_CLIP = Transform(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
    crop=1.0,
)
_HALF = (0.5, 0.5, 0.5)
# The authors', where timm's configuration says bicubic, cut from the centre.
_PE = Transform(mean=_HALF, std=_HALF, interpolation="bilinear", crop=1.0, crop_mode="squash")
_SBB = Transform(mean=_HALF, std=_HALF, interpolation="bicubic", crop=0.95)


def _rows(spec: ModelSpec, tags: tuple[str, ...], repo: str = "timm") -> tuple[ModelSpec, ...]:
    """One row for each of timm's weights of an architecture; the first has timm's plain name."""
    rows = []
    for tag in tags:
        hub = (HubFile(repo=f"{repo}/{spec.timm}.{tag}", filename="model.safetensors"),)
        first = tag == tags[0]
        name, short = (spec.name, spec.short) if first else (f"{spec.name}.{tag}", f"{spec.short}_{tag}")
        rows.append(dataclasses.replace(spec, name=name, short=short, tag=tag, hub=hub))
    return tuple(rows)


# Positions of all EVA-02 and rope_reg models are scaled to the grid that they were pre-trained on.
_REFERENCE_16 = RopeSpec(kind="axial", theta=10000.0, first="rows", coordinates=Coordinates(reference=16))
# size: width, blocks, heads, and the MLP's width, 8/3 of the model's
_EVA02 = {
    "tiny": (192, 12, 3, 512),
    "small": (384, 12, 6, 1024),
    "base": (768, 12, 12, 2048),
    "large": (1024, 24, 16, 2730),
}
_IN1K, _IN22K = "mim_in22k_ft_in1k", "mim_in22k_ft_in22k"
# size, pixels: the tags of timm's weights, those of pre-training by itself where there is no other
_EVA02_TAGS = {
    ("tiny", 224): ("mim_in22k",),
    ("small", 224): ("mim_in22k",),
    ("base", 224): ("mim_in22k",),
    ("large", 224): ("mim_in22k", "mim_m38m"),
    ("tiny", 336): (_IN1K,),
    ("small", 336): (_IN1K,),
    ("base", 448): ("mim_in22k_ft_in22k_in1k", _IN1K, _IN22K),
    ("large", 448): ("mim_m38m_ft_in22k_in1k", "mim_m38m_ft_in1k", "mim_m38m_ft_in22k", "mim_in22k_ft_in22k_in1k",
                     _IN1K, _IN22K),
}  # fmt: skip
# size, pixels: patch, width of the feature that images and texts share
_EVA02_CLIP = {("base", 224): (16, 512), ("large", 224): (14, 768), ("large", 336): (14, 768)}


def _eva02(size: str, pixels: int) -> tuple[ModelSpec, ...]:
    timm = f"eva02_{size}_patch14_{pixels}"
    row = _eva02_row(size, pixels, 14, name=timm, short=f"eva02_{size}_{pixels}", classes=0 if pixels == 224 else 1000)
    row = dataclasses.replace(row, pool="avg", final_norm=False, pooled_norm=True)
    rows = _rows(row, _EVA02_TAGS[size, pixels])
    return tuple(
        dataclasses.replace(each, classes=21841) if each.tag and each.tag.endswith("ft_in22k") else each
        for each in rows
    )


def _eva02_clip(size: str, pixels: int) -> tuple[ModelSpec, ...]:
    patch, feature = _EVA02_CLIP[size, pixels]
    timm = f"eva02_{size}_patch{patch}_clip_{pixels}"
    row = _eva02_row(size, pixels, patch, name=timm, short=f"eva02_{size}_clip_{pixels}", classes=feature)
    return _rows(dataclasses.replace(row, attention_norm=True), ("merged2b",))


def _eva02_row(size: str, pixels: int, patch: int, *, name: str, short: str, classes: int) -> ModelSpec:
    """Tiny and small have one matrix for gate and value; base and large have q, k, v and gate of their own, and a norm
    inside the MLP.
    """
    dim, depth, heads, hidden = _EVA02[size]
    large = size in ("base", "large")
    return ModelSpec(
        name=name,
        short=short,
        timm=name,
        tag=None,
        family="vit",
        rope=_REFERENCE_16,
        patch=patch,
        multiple=patch,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        hub=(),
        transform=_CLIP,
        ape=True,
        ape_grid=pixels // patch,
        ape_prefix=True,
        layer_scale="none",
        qkv_bias="qv",
        qkv_split=large,
        mlp="swiglu" if large else "packed_swiglu",
        mlp_norm=large,
        hidden=hidden,
        classes=classes,
        size=(pixels, pixels),
        licence="mit",
    )


# The authors don't scale positions, whatever the size; timm does where it differs from the file's.
_PE_ROPE = RopeSpec(kind="axial", theta=10000.0, coordinates=Coordinates(offset=1.0))
# size: patch, width, blocks, heads; gigantic has no class token, and positions from 0
_PE_SIZES = {
    "tiny": (16, 192, 12, 3),
    "small": (16, 384, 12, 6),
    "base": (16, 768, 12, 12),
    "large": (14, 1024, 24, 16),
    "gigantic": (14, 1536, 50, 16),
}
# size: pixels, width of the feature that images and texts share
_PE_CORE = {"tiny": (384, 512), "small": (384, 512), "base": (224, 1024), "large": (336, 1024), "gigantic": (448, 1280)}
_PE_SPATIAL = {"tiny": 512, "small": 512, "base": 512, "large": 448, "gigantic": 448}
# size: blocks, of which the language model reads the last but some
_PE_LANG = {"large": 23, "gigantic": 47}


def _pe(kind: str, size: str, pixels: int) -> ModelSpec:
    patch, dim, depth, heads = _PE_SIZES[size]
    gigantic = size == "gigantic"
    timm = f"vit_pe_{kind}_{size}_patch{patch}_{pixels}"
    rope = dataclasses.replace(_PE_ROPE, coordinates=Coordinates()) if gigantic else _PE_ROPE
    return ModelSpec(
        name=timm,
        short=f"pe_{kind}_{size}",
        timm=timm,
        tag="fb",
        family="vit",
        rope=rope,
        patch=patch,
        multiple=patch,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        hub=(),
        transform=_PE,
        class_token=not gigantic,
        ape=True,
        ape_grid=pixels // patch,
        ape_prefix=not gigantic,
        ape_resize="bilinear",
        layer_scale="none",
        hidden=8960 if gigantic else None,
        norm_eps=1e-5,
        pre_norm=True,
        final_norm=False,
        pool="avg",
        classes=0,
        size=(pixels, pixels),
    )


def _pe_core(size: str) -> tuple[ModelSpec, ...]:
    pixels, feature = _PE_CORE[size]
    row = _pe("core", size, pixels)
    return _rows(dataclasses.replace(row, final_norm=True, pool="map", map_heads=8, classes=feature), ("fb",))


def _pe_lang(size: str) -> tuple[ModelSpec, ...]:
    row = dataclasses.replace(_pe("lang", size, 448), depths=(_PE_LANG[size],), layer_scale="both")
    return _rows(row, ("fb", "fb_tiling"))


def _pe_spatial(size: str) -> tuple[ModelSpec, ...]:
    row = _pe("spatial", size, _PE_SPATIAL[size])
    return _rows(dataclasses.replace(row, layer_scale="both" if size == "gigantic" else "none"), ("fb",))


# size: width, blocks, heads, registers
_ROPE_REG = {
    "medium": (512, 12, 8, 1),
    "mediumd": (512, 20, 8, 1),
    "betwixt": (640, 12, 10, 4),
    "base": (768, 12, 12, 1),
}


def _rope_reg(size: str) -> tuple[ModelSpec, ...]:
    dim, depth, heads, registers = _ROPE_REG[size]
    timm = f"vit_{size}_patch16_rope_reg{registers}_gap_256"
    row = ModelSpec(
        name=timm,
        short=f"rope_reg{registers}_gap_{size}",
        timm=timm,
        tag=None,
        family="vit",
        rope=_REFERENCE_16,
        patch=16,
        multiple=16,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        hub=(),
        transform=dataclasses.replace(_CLIP, crop=0.95) if size == "betwixt" else _SBB,
        class_token=False,
        registers=registers,
        qkv_bias="none" if size == "mediumd" else "qv",
        final_norm=False,
        pooled_norm=True,
        pool="avg",
        size=(256, 256),
        licence="mit",
    )
    return _rows(row, ("sbb_in1k",))


# size: width, blocks, heads
_SAPIENS2 = {
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
    "5b": (2432, 56, 32),
}


def _sapiens2(size: str) -> tuple[ModelSpec, ...]:
    """All but the eight first and last blocks have half as many heads of keys and values."""
    dim, depth, heads = _SAPIENS2[size]
    fewer = tuple(heads if min(block, depth - 1 - block) < 8 else heads // 2 for block in range(depth))
    timm = f"vit_{size}_patch16_sapiens2"
    row = ModelSpec(
        name=timm,
        short=f"sapiens2_{size}",
        timm=timm,
        tag=None,
        family="vit",
        rope=RopeSpec(kind="axial", theta=100.0, layout="half", first="rows", coordinates=Coordinates(centred=True)),
        patch=16,
        multiple=16,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        hub=(),
        transform=_IMAGENET,
        registers=8,
        layer_scale="attention",
        qkv_split=True,
        kv_heads=fewer,
        qk_norm=True,
        mlp="packed_swiglu",
        norm="rms",
        classes=0,
        size=(1024, 768),
        licence="sapiens2-license",
    )
    return _rows(row, ("fb",))


ROPE_REG: tuple[ModelSpec, ...] = tuple(row for size in _ROPE_REG for row in _rope_reg(size))
EVA02: tuple[ModelSpec, ...] = (
    *(row for size, pixels in _EVA02_TAGS for row in _eva02(size, pixels)),
    *(row for size, pixels in _EVA02_CLIP for row in _eva02_clip(size, pixels)),
)
PE: tuple[ModelSpec, ...] = (
    *(row for size in _PE_CORE for row in _pe_core(size)),
    *(row for size in _PE_LANG for row in _pe_lang(size)),
    *(row for size in _PE_SPATIAL for row in _pe_spatial(size)),
)
SAPIENS2: tuple[ModelSpec, ...] = tuple(row for size in _SAPIENS2 for row in _sapiens2(size))
