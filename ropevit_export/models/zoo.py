"""The models, as rows of data: the 24 of "Rotary Position Embedding for Vision Transformer" (Heo et al., ECCV 2024,
arXiv:2403.13298), DINOv3 (Siméoni et al., arXiv:2508.10104) with the EUPE weights of its architecture, LingBot-Vision
(Fu et al., arXiv:2607.05247), timm's other rotary ViTs (`eva_rows.py`), and a small example whose trained weights are
in this package.

No torch: `--help` and `models` read this file.
"""

from __future__ import annotations

import dataclasses
import difflib

from ropevit_export.errors import UsageError
from ropevit_export.models.eva_rows import EVA02, PE, ROPE_REG, SAPIENS2
from ropevit_export.models.spec import Coordinates, HubFile, Mlp, ModelSpec, QkvBias, RopeKind, RopeSpec, Transform
from ropevit_export.values import Pool

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
_NAVER = "naver_in1k"
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
    converted = HubFile(repo=f"timm/{timm}.{_NAVER}", filename="model.safetensors")
    return ModelSpec(
        name=name,
        short=f"{prefix}deit_{size}",
        timm=timm,
        tag=None if kind == "none" else _NAVER,
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
        tag=None,
        family="swin",
        rope=RopeSpec(kind=kind, theta=50.0 if kind == "axial" else 10.0),
        patch=4,
        multiple=32,
        window_of=32,
        class_token=False,
        layer_scale="none",
        norm_eps=1e-5,
        pool="avg",
        transform=_SWIN_TRANSFORM,
        dims=tuple(dim * 2**stage for stage in range(4)),
        depths=depths,
        heads=tuple(heads * 2**stage for stage in range(4)),
        hub=(plain,) if kind == "none" else (HubFile(repo=f"naver-ai/{name}", filename="pytorch_model.bin"),),
        licence="mit" if kind == "none" else "apache-2.0",
    )


ROPE_VIT: tuple[ModelSpec, ...] = (
    *(_deit(prefix, size) for size in _DEIT for prefix in _DEIT_KINDS),
    *(_swin(prefix, size) for size in _SWIN for prefix in _SWIN_KINDS),
)

# size: width, blocks, heads, MLP, its width where it is not four times the model's
_DINOV3: dict[str, tuple[int, int, int, Mlp, int | None]] = {
    "tiny": (192, 12, 3, "gelu", None),
    "small": (384, 12, 6, "gelu", None),
    "small_plus": (384, 12, 6, "swiglu", None),
    "base": (768, 12, 12, "gelu", None),
    "large": (1024, 24, 16, "gelu", None),
    "huge_plus": (1280, 32, 20, "swiglu", None),
    "giant": (1536, 40, 24, "swiglu", 4096),
    "7b": (4096, 40, 32, "swiglu", 8192),
}
_LVD, _SAT, _EUPE = "lvd1689m", "sat493m", "eupe_lvd1689m"
# Meta's repositories, in the layout of transformers.
_META = {"small": "vits16", "small_plus": "vits16plus", "base": "vitb16", "large": "vitl16", "huge_plus": "vith16plus",
         "7b": "vit7b16"}  # fmt: skip
_DINOV3_TRANSFORM = Transform(
    mean=_IMAGENET_MEAN, std=_IMAGENET_STD, interpolation="bilinear", crop=1.0, crop_mode="squash"
)
_SAT_TRANSFORM = dataclasses.replace(_DINOV3_TRANSFORM, mean=(0.430, 0.411, 0.296), std=(0.213, 0.156, 0.143))


def _dinov3(size: str, tag: str = _LVD, *, biases: bool = False) -> ModelSpec:
    """`biases`: timm's names of the same architecture whose q and v have some, for weights in which they are not 0.

    Of several weights for one architecture the first row has timm's plain name, the others their tag behind it.
    """
    timm = f"vit_{size}_patch16_dinov3{'_qkvb' if biases else ''}"
    first = tag == _LVD or size == "tiny"
    short = {_LVD: "dinov3_", _SAT: "dinov3_sat_", _EUPE: "eupe_"}[tag] + size
    return _register_vit(
        name=timm if first else f"{timm}.{tag}",
        short=f"{short}_qkvb" if biases and tag != _EUPE else short,
        timm=timm,
        tag=tag,
        size=size,
        hub=_dinov3_files(timm, tag, None if biases else _META[size]),
        transform=_SAT_TRANSFORM if tag == _SAT else _DINOV3_TRANSFORM,
        qkv_bias="qv" if biases else "optional",
        head_pool="avg",  # timm's default, which a head fine-tuned with it reads
        side=256,
        licence="fair-noncommercial-research-license" if tag == _EUPE else "dinov3-license",
    )


def _dinov3_files(timm: str, tag: str, meta: str | None) -> tuple[HubFile, ...]:
    converted = HubFile(repo=f"timm/{timm}.{tag}", filename="model.safetensors")
    if meta is None:
        return (converted,)
    sharded = meta == "vit7b16"
    official = HubFile(
        repo=f"facebook/dinov3-{meta}-pretrain-{tag}",
        filename="model.safetensors.index.json" if sharded else "model.safetensors",
        gated=True,
    )
    return converted, official


def _lingbot(size: str) -> ModelSpec:
    timm = f"vit_{size}_patch16_lingbot"
    return _register_vit(
        name=timm,
        short=f"lingbot_{size}",
        timm=timm,
        tag="robbyant",
        size=size,
        hub=(HubFile(repo=f"belfner/{timm}.robbyant", filename="model.safetensors"),),
        transform=_DINOV3_TRANSFORM,
        qkv_bias="optional" if size == "giant" else "qv",
        head_pool=None,
        side=512,
        licence="apache-2.0",
    )


def _register_vit(
    *, name: str, short: str, timm: str, tag: str, size: str, hub: tuple[HubFile, ...], transform: Transform,
    qkv_bias: QkvBias, head_pool: Pool | None, side: int, licence: str,
) -> ModelSpec:  # fmt: skip
    """One class token, four registers, angles that follow the grid, no head."""
    dim, depth, heads, mlp, hidden = _DINOV3[size]
    centred = Coordinates(centred=True)
    return ModelSpec(
        name=name,
        short=short,
        timm=timm,
        tag=tag,
        family="vit",
        rope=RopeSpec(kind="axial", theta=100.0, layout="half", first="rows", coordinates=centred),
        patch=16,
        multiple=16,
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        hub=hub,
        transform=transform,
        registers=4,
        qkv_bias=qkv_bias,
        mlp=mlp,
        hidden=hidden,
        norm_eps=1e-5,
        head_pool=head_pool,
        classes=0,
        size=(side, side),
        licence=licence,
    )


DINOV3: tuple[ModelSpec, ...] = (
    *(_dinov3(size) for size in _META),
    *(_dinov3(size, biases=True) for size in ("small", "small_plus", "base", "large", "huge_plus")),
    _dinov3("large", _SAT),
    _dinov3("large", _SAT, biases=True),
    _dinov3("7b", _SAT),
    *(_dinov3(size, _EUPE, biases=True) for size in ("tiny", "small", "base")),
)
LINGBOT: tuple[ModelSpec, ...] = tuple(_lingbot(size) for size in ("small", "base", "large", "giant"))
# Of each family, in the order that they are listed in.
FAMILIES: dict[str, tuple[ModelSpec, ...]] = {
    "RoPE-ViT": ROPE_VIT,
    "DINOv3": DINOV3,
    "LingBot-Vision": LINGBOT,
    "EVA-02": EVA02,
    "Perception Encoder": PE,
    "rope_reg": ROPE_REG,
    "Sapiens2": SAPIENS2,
}
MODELS: tuple[ModelSpec, ...] = tuple(spec for rows in FAMILIES.values() for spec in rows)

# Ten digits of scikit-learn at 32x32: enough to measure accuracy on any machine, without a hub. See digits/README.md.
DIGITS = ModelSpec(
    name="rope_mixed_deit_digits",
    short="rope_mixed_deit_digits",
    timm=None,
    tag=None,
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
    size=(32, 32),
    packaged="37d97727877d8cf35e477d6f82fff4d3a0867d394e8ef0d3802a951999b058bc",
)

EXAMPLES: tuple[ModelSpec, ...] = (DIGITS,)

# What a name begins with that is timm's constructor and its arguments, not a row.
_MODULE = "timm:"
# What a name on the hub may begin with.
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "https://huggingface.co/")


def _names(spec: ModelSpec) -> tuple[str, ...]:
    timm = (spec.timm, f"{spec.timm}.{spec.tag}") if spec.tag else (spec.timm,)
    return tuple(name for name in (spec.name, spec.short, *timm) if name)


# Of names that several rows answer to, such as timm's of an architecture with several weights, the first row's.
_BY_NAME = {name: spec for spec in reversed((*MODELS, *EXAMPLES)) for name in _names(spec)}
_BY_REPO = {file.repo: dataclasses.replace(spec, hub=(file,)) for spec in reversed(MODELS) for file in spec.hub}


def find_model(name: str) -> ModelSpec:
    """The model that answers to an official, short or timm name, or to a repository of the hub, which its weights then
    come from; the error names the three closest. `timm:NAME` or `timm:NAME:depth=6,embed_dim=192`: any module of
    timm's `Eva` class, which timm is imported for.
    """
    if name.startswith(_MODULE):
        from ropevit_export.models import timm_modules

        return timm_modules.named(name)
    bare = name
    for prefix in _HUB_PREFIXES:
        bare = bare.removeprefix(prefix)
    if bare in _BY_NAME:
        return _BY_NAME[bare]
    if bare in _BY_REPO:
        return _BY_REPO[bare]
    closest = difflib.get_close_matches(bare, {**_BY_NAME, **_BY_REPO}, n=3, cutoff=0.0)
    raise UsageError(f"unknown model {name!r}; closest: {', '.join(closest)}. `ropevit-export models` lists all.")
