"""timm's `Eva`, the class of all its rotary ViTs: a spec read off any module of it, a module built from any spec."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ropevit_export.errors import UsageError
from ropevit_export.models.spec import (
    Coordinates,
    LayerScale,
    Mlp,
    ModelSpec,
    Norm,
    QkvBias,
    RopeKind,
    RopeSpec,
    Transform,
)
from ropevit_export.values import Pool

if TYPE_CHECKING:
    from torch import nn

# What a name begins with that stands for a module and not for a row: timm:NAME or timm:NAME:depth=6,embed_dim=192.
PREFIX = "timm:"
# The class itself, where no registered name describes the module.
CLASS = "Eva"
_IMAGENET = Transform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop=1.0)
_KINDS: dict[str, RopeKind] = {
    "RotaryEmbeddingCat": "axial",
    "RotaryEmbeddingDinoV3": "axial",
    "RotaryEmbeddingMixed": "mixed",
}
_NORMS: dict[str, Norm] = {"LayerNorm": "layer", "LayerNormFp32": "layer", "RmsNorm": "rms", "RmsNormFp32": "rms"}
_TRAINING_ONLY = ("Dropout", "DropPath", "PatchDropoutWithIndices", "Identity")


def build(spec: ModelSpec, size: tuple[int, int], classes: int, **changes: Any) -> nn.Module:
    """timm's module of a model on `meta`, at a height and width in pixels, under timm's own name where it has one.

    Positions at other sizes are the authors': the rotary grid is scaled to a reference only where the spec says so.
    """
    import timm

    changes |= {"img_size": size, "num_classes": classes}
    if spec.timm is None:
        return _eva(**arguments(spec) | changes)
    changes |= {"depth": spec.depths[0], "embed_dim": spec.dims[0], "num_heads": spec.heads[0]}
    changes["patch_size"] = spec.patch
    if spec.kv_heads is not None:
        changes["num_kv_heads"] = spec.kv_heads
    model: Any = timm.create_model(spec.timm, device="meta", **changes)
    if spec.rope.kind == "axial" and not spec.rope.coordinates.centred:
        reference = spec.rope.coordinates.reference
        # an argument of None, `create_model` takes for none given; the table is computed later
        model.rope.ref_feat_shape = None if reference is None else (reference, reference)
    built: nn.Module = model
    return built


def arguments(spec: ModelSpec) -> dict[str, Any]:
    """What timm's `Eva` is constructed with to be this model; norms as `layer` or `rms`, a colon, and their epsilon."""
    dim, hidden, rope = spec.dims[0], spec.mlp_width(0), spec.rope
    turns, centred = rope.kind != "none", rope.coordinates.centred
    return {
        "img_size": spec.size,
        "patch_size": spec.patch,
        "num_classes": spec.classes,
        "global_pool": spec.pool,
        "embed_dim": dim,
        "depth": spec.depths[0],
        "num_heads": spec.heads[0],
        "num_kv_heads": spec.kv_heads,
        "qkv_bias": spec.qkv_bias in ("qkv", "qv"),
        "qkv_fused": not spec.qkv_split,
        "qk_norm": spec.qk_norm,
        "mlp_ratio": (hidden + 0.5) / dim,  # timm rounds down
        "swiglu_mlp": spec.mlp != "gelu",
        "swiglu_align_to": int(spec.mlp == "swiglu"),
        "scale_mlp": spec.mlp_norm,
        "scale_attn_inner": spec.attention_norm,
        "attn_type": "rope" if spec.qkv_bias == "qkv" or spec.kv_heads is not None else "eva",
        "norm_layer": f"{spec.norm}:{spec.norm_eps:g}",
        "init_values": None if spec.layer_scale == "none" else 1.0,
        "attn_only_layer_scale": spec.layer_scale == "attention",
        "class_token": spec.class_token,
        "num_reg_tokens": spec.registers,
        "no_embed_class": not spec.ape_prefix,
        "use_abs_pos_emb": spec.ape,
        "use_rot_pos_emb": turns,
        "rope_type": "mixed" if rope.kind == "mixed" else "dinov3" if centred else "cat",
        "rope_temperature": rope.theta,
        "rope_grid_indexing": "xy" if rope.first == "columns" else "ij",
        "rope_grid_offset": rope.coordinates.offset,
        "rope_rotate_half": turns and rope.layout == "half",
        "ref_feat_shape": rope.coordinates.reference,
        "use_pre_transformer_norm": spec.pre_norm,
        "use_post_transformer_norm": spec.final_norm,
        "use_fc_norm": spec.pooled_norm,
        "attn_pool_num_heads": spec.map_heads,
        "attn_pool_mlp_ratio": (spec.map_hidden + 0.5) / dim if spec.map_hidden else None,
        "dynamic_img_size": False,
    }


def spec_of(module: nn.Module, *, name: str | None = None, short: str | None = None) -> ModelSpec:
    """The spec of any module of timm's `Eva` class, also on `meta`; export it with `weights=module.state_dict()`.

    Raises UsageError that names the switch where the module computes something that no spec says.
    """
    found: Any = module
    if type(module).__name__ != CLASS:
        raise UsageError(f"{type(module).__name__} is not timm's class Eva, which all of its rotary ViTs are of.")
    spec = _read(found)
    rebuilt = _structure(_eva(**arguments(spec)))
    given = _structure(module)
    for place in sorted(given.keys() | rebuilt.keys()):
        if given.get(place) != rebuilt.get(place):
            raise UsageError(
                f"{place} is {given.get(place, 'not there')}, where the Eva class has {rebuilt.get(place, 'nothing')}: "
                "a spec says what its constructor can, not what was changed afterwards."
            )
    defaults = arguments(_PLAIN)
    # which norms there are the constructor derives, from the pooling and from each other
    plain = all(getattr(spec, field) == getattr(_PLAIN, field) for field in ("pool", "final_norm", "pooled_norm"))
    always = () if plain else ("use_post_transformer_norm", "use_fc_norm")
    changed = {key: value for key, value in arguments(spec).items() if value != defaults[key] or key in always}
    name = name or f"{PREFIX}{CLASS}:{_text(changed)}"
    return dataclasses.replace(spec, name=name, short=short or f"eva-{spec.dims[0]}x{spec.depths[0]}-{_digest(name)}")


def named(text: str) -> ModelSpec:
    """The spec of `timm:NAME` or `timm:NAME:depth=6,embed_dim=192`: timm's module of that name, built with those
    arguments on `meta`. Raises UsageError.
    """
    import timm

    name, _, given = text.removeprefix(PREFIX).partition(":")
    changes = _parsed(given)
    _require_measures(name, changes)
    plain = f"{PREFIX}{name}:{_text(changes)}" if changes else f"{PREFIX}{name}"
    short = None if name == CLASS else f"{name}-{_digest(plain)}" if changes else name
    try:
        module = _eva(**changes) if name == CLASS else timm.create_model(name, device="meta", **_built(changes))
        spec = spec_of(module, name=plain, short=short)
    except UsageError:
        raise
    except Exception as error:  # of a constructor, or of what it makes of such arguments: any
        raise UsageError(f"timm builds no {name} with {given or 'no arguments'}: {error}.") from error
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    if not config.get("mean"):
        return spec
    transform = Transform(
        mean=tuple(config["mean"]), std=tuple(config["std"]), interpolation=config["interpolation"],
        crop=config["crop_pct"], crop_mode=config["crop_mode"] if config["crop_mode"] == "squash" else "center",
    )  # fmt: skip
    return dataclasses.replace(spec, transform=transform)


# Of a module that a name describes, which may be a stranger's manifest's. The deepest ViTs have 80 blocks, and each is
# built.
_LARGEST, _MOST_BLOCKS, _LONGEST = 1 << 16, 100, 2000


def _require_measures(name: str, changes: Mapping[str, Any]) -> None:
    """Raises UsageError for what is no measure of a module, such as where timm is to get weights from, and for what
    would take memory or time by its size.
    """
    from timm.models.eva import Eva

    known = inspect.signature(Eva.__init__).parameters.keys() - {"self", "device", "dtype"}
    if strangers := sorted(changes.keys() - known):
        raise UsageError(f"{PREFIX}{name} takes the arguments of timm's class Eva, of which {strangers[0]} is none.")
    for key, value in changes.items():
        most = _MOST_BLOCKS if key == "depth" else _LARGEST
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(each, (int, float)) and not abs(each) <= most for each in numbers):
            raise UsageError(f"{PREFIX}{name}: {key} is {value}, needs at most {most}.")


def _eva(**given: Any) -> nn.Module:
    from timm.models.eva import Eva

    model: nn.Module = Eva(**_built(given), device="meta")
    return model


def _built(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with a norm as timm's class of it."""
    from timm.layers import LayerNorm, RmsNorm

    norm = given.get("norm_layer")
    if not isinstance(norm, str):
        return dict(given)
    kind, _, eps = norm.partition(":")
    classes = {"layer": LayerNorm, "rms": RmsNorm}
    if kind not in classes:
        raise UsageError(f"norm_layer {norm!r} is neither layer nor rms, such as rms:1e-6.")
    return {**given, "norm_layer": partial(classes[kind], eps=float(eps or 1e-6))}


def _text(given: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value!r}".replace(" ", "") for key, value in given.items())


def _parsed(text: str) -> dict[str, Any]:
    """`depth=6,img_size=(96,64)` → the arguments."""
    if len(text) > _LONGEST:
        raise UsageError(f"model arguments of {len(text)} characters: at most {_LONGEST} are read.")
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("an argument without a name")
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        raise UsageError(
            f"model arguments {text!r} are not NAME=VALUE with commas, such as depth=6,embed_dim=192: {error}."
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _structure(module: nn.Module) -> dict[str, str]:
    """Every module that computes something in `eval()`, by name: its class, its own parameters, what it says of itself,
    its epsilon.
    """
    found = {}
    for name, each in module.named_modules():
        kind = type(each).__name__
        if kind in _TRAINING_ONLY or not name:
            continue
        # the two attentions, given the same parameters, compute the same
        kind = "EvaAttention" if kind == "AttentionRope" else kind.removesuffix("Fp32")
        says = [each.extra_repr(), f"eps {each.eps:g}" if hasattr(each, "eps") else ""]
        says += [f"{own} {tuple(value.shape)}" for own, value in each.named_parameters(recurse=False)]
        found[name] = f"{kind}({', '.join(filter(None, says))})"
    return found


def _refuse(switch: str, value: object, needed: str) -> UsageError:
    return UsageError(f"{switch} is {value}: a spec has only {needed}.")


def _square(switch: str, pair: object) -> int:
    first, second = pair if isinstance(pair, (tuple, list)) else (pair, pair)
    if first != second:
        raise _refuse(switch, (first, second), "square ones")
    return int(cast("int", first))


def _read(module: Any) -> ModelSpec:
    """Switch by switch, from what the module holds."""
    embed, block = module.patch_embed, module.blocks[0]
    if type(block).__name__ != "EvaBlock":
        raise _refuse("use_post_norm", True, "norms before attention and MLP")
    if module.in_chans != 3:
        raise _refuse("in_chans", module.in_chans, "3 channels, red, green and blue")
    if module.global_pool not in ("token", "avg", "map"):
        raise _refuse("global_pool", repr(module.global_pool), "token, avg and map")
    if block.attn.gate is not None:
        raise _refuse("gated_attn", True, "attention without a gate")
    attention, dim, heads = block.attn, module.embed_dim, block.attn.num_heads
    if attention.head_dim * heads != dim or attention.head_dim % 4:
        raise _refuse("num_heads", f"{heads} of {attention.head_dim} channels for embed_dim {dim}",
                      "heads that share embed_dim and have a multiple of 4 channels")  # fmt: skip
    if module.rope_mixed and _read_kv_heads(module) is not None:
        raise _refuse("num_kv_heads", f"fewer than {heads} with rope_type mixed", "as many, as timm can turn no other")
    norm = type(block.norm1).__name__
    if norm not in _NORMS:
        raise _refuse("norm_layer", norm, "LayerNorm and RmsNorm")
    size = tuple(embed.img_size)
    grid = tuple(embed.grid_size)
    ape = module.pos_embed is not None
    pool = module.attn_pool
    return ModelSpec(
        name="",
        short="",
        timm=None,
        tag=None,
        family="vit",
        rope=_read_rope(module),
        patch=(patch := _square("patch_size", embed.patch_size)),
        multiple=patch,
        dims=(dim,),
        depths=(len(module.blocks),),
        heads=(heads,),
        hub=(),
        transform=_IMAGENET,
        class_token=module.cls_token is not None,
        registers=0 if module.reg_token is None else module.reg_token.shape[1],
        ape=ape,
        ape_grid=_square("img_size with use_abs_pos_emb", grid) if ape else 14,
        ape_prefix=not module.no_embed_class and ape and module.num_prefix_tokens > 0,
        layer_scale=_read_scale(block),
        qkv_bias=_read_bias(attention),
        qkv_split=attention.qkv is None,
        kv_heads=_read_kv_heads(module),
        qk_norm=type(attention.q_norm).__name__ != "Identity",
        attention_norm=type(attention.norm).__name__ != "Identity",
        mlp=_read_mlp(block.mlp),
        mlp_norm=type(block.mlp.norm).__name__ != "Identity",
        hidden=block.mlp.fc2.in_features,
        norm=_NORMS[norm],
        norm_eps=block.norm1.eps,
        pre_norm=type(module.norm_pre).__name__ != "Identity",
        final_norm=type(module.norm).__name__ != "Identity",
        pooled_norm=type(module.fc_norm).__name__ != "Identity",
        pool=cast("Pool", module.global_pool),
        map_heads=None if pool is None else pool.num_heads,
        map_hidden=None if pool is None else pool.mlp.fc1.out_features,
        classes=module.num_classes,
        size=cast("tuple[int, int]", size),
    )


def _read_rope(module: Any) -> RopeSpec:
    rope = module.rope
    if rope is None:
        return _PLAIN.rope
    kind = type(rope).__name__
    if kind not in _KINDS:
        raise _refuse("rope_type", {"RotaryEmbeddingMRope": "mrope"}.get(kind, kind), "cat, mixed and dinov3")
    half = bool(module.blocks[0].attn.rotate_half)
    centred = kind == "RotaryEmbeddingDinoV3"
    offset, reference = float(getattr(rope, "grid_offset", 0.0)), getattr(rope, "ref_feat_shape", None)
    if centred and offset:
        raise _refuse("rope_grid_offset", f"{offset:g} with rope_type dinov3", "0 there")
    return RopeSpec(
        kind=_KINDS[kind],
        theta=float(rope.temperature),
        layout="half" if half else "adjacent",
        first="columns" if rope.grid_indexing == "xy" else "rows",
        coordinates=Coordinates(
            offset=offset,
            reference=None if reference is None else _square("ref_feat_shape", reference),
            centred=centred,
        ),
    )


def _read_scale(block: Any) -> LayerScale:
    if block.gamma_1 is None:
        return "none"
    return "attention" if block.gamma_2 is None else "both"


def _read_bias(attention: Any) -> QkvBias:
    if attention.qkv is not None:
        if attention.qkv.bias is not None:
            return "qkv"
        return "none" if getattr(attention, "q_bias", None) is None else "qv"
    if attention.q_proj.bias is None:
        return "none"
    return "qv" if attention.k_proj.bias is None else "qkv"


def _read_kv_heads(module: Any) -> tuple[int, ...] | None:
    counts = tuple(getattr(block.attn, "num_kv_heads", block.attn.num_heads) for block in module.blocks)
    return None if set(counts) == {module.blocks[0].attn.num_heads} else counts


def _read_mlp(mlp: Any) -> Mlp:
    kinds: dict[str, Mlp] = {"Mlp": "gelu", "SwiGLU": "swiglu", "GluMlp": "packed_swiglu"}
    kind = type(mlp).__name__
    if kind not in kinds:
        raise _refuse("mlp", kind, "Mlp, SwiGLU and GluMlp")
    return kinds[kind]


# What the constructor's own defaults build.
_PLAIN = ModelSpec(
    name="",
    short="",
    timm=None,
    tag=None,
    family="vit",
    rope=RopeSpec(kind="none", theta=10000.0, first="rows"),
    patch=16,
    multiple=16,
    dims=(768,),
    depths=(12,),
    heads=(12,),
    hub=(),
    transform=_IMAGENET,
    pool="avg",
    qkv_bias="qv",
    ape=True,
    ape_prefix=True,
    layer_scale="none",
    final_norm=False,
    pooled_norm=True,
)
