"""The 24 models of "Rotary Position Embedding for Vision Transformer" (Heo et al., ECCV 2024, arXiv:2403.13298), and a
small example whose trained weights are in this package.

Rows of data, no torch: `--help` and `models` read this file.
"""

from __future__ import annotations

import dataclasses
import difflib

from ropevit_export.errors import UsageError
from ropevit_export.models.spec import HubFile, ModelSpec, RopeKind, RopeSpec
from ropevit_export.values import Transform

# size: width, blocks, heads
_DEIT = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
# size: width of the first stage, blocks a stage, heads of the first stage
_SWIN = {"tiny": (96, (2, 2, 6, 2), 3), "small": (96, (2, 2, 18, 2), 3), "base": (128, (2, 2, 18, 2), 4)}
# prefix of the official name: rotary kind, absolute embedding, timm's name
_DEIT_KINDS: dict[str, tuple[RopeKind, bool, str]] = {
    "": ("none", True, "deit3_{}_patch16_224"),
    "rope_axial_": ("axial", False, "vit_{}_patch16_rope_224"),
    "rope_mixed_": ("mixed", False, "vit_{}_patch16_rope_mixed_224"),
    "rope_axial_ape_": ("axial", True, "vit_{}_patch16_rope_ape_224"),
    "rope_mixed_ape_": ("mixed", True, "vit_{}_patch16_rope_mixed_ape_224"),
}
_SWIN_KINDS: dict[str, RopeKind] = {"": "none", "rope_axial_": "axial", "rope_mixed_": "mixed"}
_TIMM_TAG = ".naver_in1k"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# The authors' own: DeiT resizes the short side to the size itself, where timm's configuration says 0.9.
_DEIT_TRANSFORM = Transform(mean=_IMAGENET_MEAN, std=_IMAGENET_STD, interpolation="bicubic", crop=1.0)
_SWIN_TRANSFORM = dataclasses.replace(_DEIT_TRANSFORM, crop=224 / 256)


def _deit(prefix: str, size: str) -> ModelSpec:
    dim, depth, heads = _DEIT[size]
    kind, ape, timm_name = _DEIT_KINDS[prefix]
    name, timm = f"{prefix}deit_{size}_patch16_LS", timm_name.format(size)
    official = HubFile(repo=f"naver-ai/{name}", filename="pytorch_model.bin")
    converted = HubFile(repo=f"timm/{timm}{_TIMM_TAG}", filename="model.safetensors")
    return ModelSpec(
        name=name,
        short=f"{prefix}deit_{size}",
        timm=timm,
        family="vit",
        rope=RopeSpec(kind=kind, theta=100.0 if kind == "axial" else 10.0),
        ape=ape,
        patch=16,
        multiple=16,
        transform=_DEIT_TRANSFORM,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        # timm's plain DeiT-III weights are another training run, not the paper's.
        hub=(official,) if kind == "none" else (converted, official),
    )


def _swin(prefix: str, size: str) -> ModelSpec:
    dim, depths, heads = _SWIN[size]
    kind = _SWIN_KINDS[prefix]
    name = f"swin_{prefix}{size}_patch4_window7_224"
    # The authors publish no plain Swin; these are Microsoft's, which they compare with.
    plain = HubFile(repo=f"timm/{name}.ms_in1k", filename="model.safetensors")
    return ModelSpec(
        name=name,
        short=f"swin_{prefix}{size}",
        timm=name if kind == "none" else None,
        family="swin",
        rope=RopeSpec(kind=kind, theta=50.0 if kind == "axial" else 10.0),
        patch=4,
        multiple=32,
        window_of=32,
        class_token=False,
        layer_scale=False,
        norm_eps=1e-5,
        pool="avg",
        transform=_SWIN_TRANSFORM,
        dims=tuple(dim * 2**stage for stage in range(4)),
        depths=depths,
        heads=tuple(heads * 2**stage for stage in range(4)),
        hub=(plain,) if kind == "none" else (HubFile(repo=f"naver-ai/{name}", filename="pytorch_model.bin"),),
    )


MODELS: tuple[ModelSpec, ...] = (
    *(_deit(prefix, size) for size in _DEIT for prefix in _DEIT_KINDS),
    *(_swin(prefix, size) for size in _SWIN for prefix in _SWIN_KINDS),
)

# Ten digits of scikit-learn at 32x32: enough to measure accuracy on any machine, without a hub. See digits/README.md.
DIGITS = ModelSpec(
    name="rope_mixed_deit_digits",
    short="rope_mixed_deit_digits",
    timm=None,
    family="vit",
    rope=RopeSpec(kind="mixed", theta=10.0),
    patch=4,
    multiple=4,
    transform=_DEIT_TRANSFORM,
    dims=(48,),
    depths=(4,),
    heads=(3,),
    hub=(),
    classes=10,
    packaged="37d97727877d8cf35e477d6f82fff4d3a0867d394e8ef0d3802a951999b058bc",
)

EXAMPLES: tuple[ModelSpec, ...] = (DIGITS,)

_BY_NAME = {
    name: spec
    for spec in (*MODELS, *EXAMPLES)
    for name in (spec.name, spec.short, spec.timm, spec.timm and spec.rope.kind != "none" and spec.timm + _TIMM_TAG)
    if name
}


def find_model(name: str) -> ModelSpec:
    """The model that answers to an official, short or timm name; the error names the three closest."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    closest = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.0)
    raise UsageError(f"unknown model {name!r}; closest: {', '.join(closest)}. `ropevit-export models` lists all.")
