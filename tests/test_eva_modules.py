"""Any module of timm's `Eva` class: what the spec read off it computes is what the module computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from timm.layers import LayerNorm, RmsNorm
from timm.models.eva import Eva

from ropevit_export import Request, cli, export, spec_of
from ropevit_export.errors import UsageError
from ropevit_export.models import timm_modules
from ropevit_export.models.adopt import adopt
from ropevit_export.models.eva_rows import EVA02, PE, ROPE_REG, SAPIENS2
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import DINOV3, LINGBOT, ROPE_VIT, find_model
from ropevit_export.rope import tables
from ropevit_export.runtime import load
from ropevit_export.trace.positions import TableBank
from ropevit_export.trace.vit import DeployVit
from ropevit_export.values import Checkpoint, Resolution

ROTARY = [spec for spec in (*ROPE_VIT, *DINOV3, *LINGBOT, *EVA02, *PE, *ROPE_REG, *SAPIENS2)
          if spec.family == "vit" and spec.rope.kind != "none"]  # fmt: skip
# What a row says that no module does: names, weights, and how its authors treat other sizes than the file's.
BESIDE = ("name", "short", "timm", "tag", "hub", "transform", "licence", "packaged", "head_pool", "ape_resize")
Answers = dict[str, torch.Tensor]


def filled(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter random, so that no term can hide behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                drawn = 1 + 0.3 * drawn
            elif "gamma" in name:
                drawn = 0.6 + 0.3 * drawn
            elif value.ndim >= 2 and not name.startswith(("pos_embed", "cls", "reg", "rope")):
                drawn = drawn / value[0].numel() ** 0.5
            else:
                drawn = 0.5 * drawn
            value.copy_(drawn)
    return module.eval()


def test_there_are_sixty_names() -> None:
    names = {name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__ == "timm.models.eva"}
    plain = {name for name in names if "eva_giant" in name or "eva02_enormous" in name}
    assert {spec.timm for spec in ROTARY} == names - plain
    assert len(names - plain) == 60


@pytest.mark.parametrize(
    "spec",
    # Large ones take seconds each.
    [pytest.param(each, marks=pytest.mark.slow if each.dims[-1] > 768 else ()) for each in ROTARY],
    ids=lambda spec: spec.short,
)
def test_parameters_and_switches_are_timms(spec: ModelSpec) -> None:
    """On `meta`, all 60 names whole: names, shapes and count of parameters, and every switch that a module shows."""
    with torch.device("meta"):
        module = timm.create_model(spec.timm, num_classes=spec.classes)
    wanted = {name: tuple(each.shape) for name, each in module.named_parameters()}
    if spec.rope.kind == "mixed":
        wanted["freqs"] = (*wanted["rope.freqs"][:2], spec.dims[0] // 2)
        del wanted["rope.freqs"]
    assert FAMILIES[spec.family].shapes(spec, spec.classes) == wanted
    read = spec_of(module)
    for field in dataclasses.fields(spec):
        if field.name not in BESIDE:
            assert said(read, field.name) == said(spec, field.name), field.name


def said(spec: ModelSpec, field: str) -> object:
    """A field as the module could say it."""
    value = getattr(spec, field)
    if field == "hidden":
        return spec.mlp_width(0)
    if field == "map_hidden" and spec.map_heads:
        return value or 4 * spec.dims[0]
    if field == "kv_heads" and value and set(value) == set(spec.heads):
        return None
    if field == "qkv_bias" and value == "optional":
        return "none"
    if field == "pool":
        return spec.head_pool or value  # of DINOv3 timm's, where the authors' is the class token
    if field == "rope" and spec.ape_resize == "bilinear":  # its authors don't scale positions at other sizes
        return dataclasses.replace(value, coordinates=dataclasses.replace(value.coordinates, reference=spec.ape_grid))
    return value


def ours(spec: ModelSpec, module: torch.nn.Module, image: torch.Tensor, output: str) -> Answers:
    """The folded model's answers, in PyTorch."""
    size = Resolution(height=image.shape[2], width=image.shape[3])
    request = Request(model=spec, resolutions=(size,), output=output, engines=("none",))
    (io,) = request.graphs()
    checkpoint = Checkpoint(
        dictionaries={"": module.state_dict()}, source="module", revision=None, sha256="", trained=True
    )
    weights = adopt(spec, checkpoint)
    freqs = FAMILIES[spec.family].frequencies(spec, weights)
    made = tables.block_tables(freqs, spec.rope.coordinates, spec.grid(size), spec.prefix)
    folded = DeployVit(spec, weights, TableBank(made) if made else None, io).eval()
    with torch.inference_mode():
        return dict(zip(io.output_names, folded(image), strict=True))


def theirs(module: Any, image: torch.Tensor) -> Answers:
    with torch.inference_mode():
        tokens = module.forward_features(image)
        maps = module.forward_intermediates(image, indices=[0, 1], norm=True, intermediates_only=True)
        found = {"tokens": tokens, "pooled": module.forward_head(tokens, pre_logits=True)}
        found |= {"features_0": maps[0], "features_1": maps[1]}
        return found | ({"logits": module(image)} if module.num_classes else {})


@st.composite
def switches(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the constructor, among them some that no spec says."""

    def choose(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    heads, width = choose(2, 4), choose(8, 12, 16, 20)
    attention = choose("eva", "rope")
    fused = choose(True, False)
    pool = choose("avg", "token", "map", "avg", "token", "map", "max", "avgmax")
    rope = choose("cat", "cat", "dinov3", "mixed", "mrope")
    swiglu = choose(True, False)
    patch = choose(4, 8)
    return {
        "img_size": (patch * 3, patch * 3 if draw(st.booleans()) else patch * 5),
        "patch_size": patch,
        "in_chans": choose(3, 3, 3, 3, 3, 3, 1),
        "num_classes": choose(0, 5, 3),
        "global_pool": pool,
        "embed_dim": heads * width,
        "depth": 2,
        "num_heads": heads,
        "num_kv_heads": choose(None, (heads, heads // 2)) if attention == "rope" and not fused else None,
        "qkv_bias": draw(st.booleans()),
        "qkv_fused": fused,
        "qk_norm": draw(st.booleans()),
        "mlp_ratio": choose(4.0, 8 / 3, 2.2),
        "swiglu_mlp": swiglu,
        "swiglu_align_to": choose(0, 8) if swiglu else 0,
        "scale_mlp": draw(st.booleans()),
        "scale_attn_inner": draw(st.booleans()),
        "attn_type": attention,
        "norm_layer": partial(choose(LayerNorm, LayerNorm, RmsNorm), eps=choose(1e-6, 1e-5, 1e-3)),
        "init_values": choose(None, 1e-5),
        "attn_only_layer_scale": draw(st.booleans()),
        "class_token": pool == "token" or draw(st.booleans()),
        "num_reg_tokens": choose(0, 1, 4),
        "no_embed_class": draw(st.booleans()),
        "use_abs_pos_emb": draw(st.booleans()),
        "use_rot_pos_emb": choose(True, True, True, False),
        "rope_type": rope,
        "rope_grid_offset": choose(0.0, 1.0, 0.5),
        "rope_grid_indexing": choose("ij", "xy"),
        "rope_temperature": choose(100.0, 10000.0),
        "rope_rotate_half": rope not in ("mixed",) and draw(st.booleans()),
        "ref_feat_shape": choose(None, 16, (3, 3), (16, 8)),
        "use_post_norm": choose(*[False] * 9, True),
        "use_pre_transformer_norm": draw(st.booleans()),
        "use_post_transformer_norm": choose(None, True, False),
        "use_fc_norm": choose(None, True, False),
        "attn_pool_num_heads": choose(None, 2, 4),
        "attn_pool_mlp_ratio": choose(None, 2.0),
        "dynamic_img_size": draw(st.booleans()),
    }


def built(given: dict[str, Any]) -> torch.nn.Module:
    """Raises what the constructor does."""
    torch.manual_seed(0)
    return filled(Eva(**given))


# What no spec says, by the name that the error has to give.
REFUSED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "use_post_norm": lambda given: given["use_post_norm"],
    "in_chans": lambda given: given["in_chans"] != 3,
    "global_pool": lambda given: given["global_pool"] in ("max", "avgmax"),
    "rope_type": lambda given: given["use_rot_pos_emb"] and given["rope_type"] == "mrope",
    "rope_grid_offset": lambda given: (
        given["use_rot_pos_emb"] and given["rope_type"] == "dinov3" and bool(given["rope_grid_offset"])
    ),
    "num_kv_heads": lambda given: (
        given["use_rot_pos_emb"] and given["rope_type"] == "mixed" and given["num_kv_heads"] is not None
    ),
    "ref_feat_shape": lambda given: (
        given["use_rot_pos_emb"] and given["rope_type"] == "cat" and given["ref_feat_shape"] == (16, 8)
    ),
    "img_size": lambda given: given["use_abs_pos_emb"] and given["img_size"][0] != given["img_size"][1],
}  # fmt: skip


def module_and_spec(given: dict[str, Any]) -> tuple[torch.nn.Module, ModelSpec] | None:
    """None where the spec can't say it, and the error has said which switch it is."""
    try:
        module = built(given)
    except (AssertionError, ValueError, TypeError, RuntimeError):
        assume(False)  # timm refuses by itself
        raise
    reasons = [switch for switch, refuses in REFUSED.items() if refuses(given)]
    if reasons:
        with pytest.raises(UsageError, match="|".join(reasons)):
            spec_of(module)
        return None
    return module, spec_of(module)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(given=switches())
def test_what_a_spec_says_of_a_module_is_what_it_computes(given: dict[str, Any]) -> None:
    found = module_and_spec(given)
    if found is None:
        return
    module, spec = found
    assert timm_modules.named(spec.name) == spec, "a bundle must find the module again by the name alone"
    image = torch.randn(2, 3, *given["img_size"], generator=torch.Generator().manual_seed(2))
    wanted = theirs(module, image)
    outputs = ",".join({name.replace("_", ":"): None for name in wanted if not name.startswith("features")})
    answers = ours(spec, module, image, f"{outputs},features:0,1")
    assert answers.keys() == wanted.keys()
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, rtol=2e-5, err_msg=name)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(given=switches())
def test_two_hundred_modules_go_through_the_whole_pipe(
    given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """About two in five are what a spec can say; the others are refused by a switch's name."""
    found = module_and_spec(given)
    if found is None:
        return
    module, spec = found
    folder = tmp_path_factory.mktemp("whole") / "out"
    size = Resolution(height=given["img_size"][0], width=given["img_size"][1])
    request = Request(model=spec, resolutions=(size,), engines=("none",), output="pooled,tokens,features:0,1")
    export(request, out=folder, weights=module.state_dict())
    image = torch.randn(1, 3, size.height, size.width, generator=torch.Generator().manual_seed(2))
    wanted = theirs(module, image)
    for name, answer in load(folder).run_all(image.numpy()).items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, rtol=2e-5, err_msg=name)


def test_a_module_goes_through_the_pipe_from_python(tmp_path: Path) -> None:
    """One that no name has: half of DINOv3's depth and width, patches of 8, seven classes."""
    module = filled(
        timm.create_model("vit_small_patch16_dinov3", embed_dim=96, num_heads=4, depth=2, patch_size=8, num_classes=7)
    )
    spec = spec_of(module)
    size = Resolution.parse("24x40")
    written = export(Request(model=spec, resolutions=(size,), engines=("none",)), out=tmp_path / "out",
                     weights=module.state_dict())  # fmt: skip
    image = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        np.testing.assert_allclose(load(written.path).run(image.numpy()), module(image), atol=2e-5)
    assert find_model(written.manifest.model) == spec
    assert written.manifest.weights.source == "state_dict"


def test_a_module_goes_through_the_pipe_from_the_command_line(tmp_path: Path) -> None:
    given = "depth=2,embed_dim=96,num_heads=4,img_size=28,num_classes=3"
    module = filled(timm.create_model("eva02_base_patch14_448", depth=2, embed_dim=96, num_heads=4, img_size=28,
                                      num_classes=3))  # fmt: skip
    torch.save(module.state_dict(), tmp_path / "tuned.pth")
    arguments = ["--model", "timm:eva02_base_patch14_448", "--model-args", given, "--res", "28", "--engine", "none"]
    out = tmp_path / "out"
    assert cli.run([*arguments, "-q", "--weights", str(tmp_path / "tuned.pth"), "--out", str(out)]) == 0
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        np.testing.assert_allclose(load(out).run(image.numpy()), module(image), atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "dinov3_small", "--model-args", "depth=2"], "--model-args is for --model timm:NAME"),
        (
            ["--model", "timm:eva02_tiny_patch14_336", "--model-args", "depht=2"],
            "of timm's class Eva, of which depht is none",
        ),
        (["--model", "timm:eva02_tiny_patch14_336", "--model-args", "depth"], "not NAME=VALUE"),
        (["--model", "timm:resnet18"], "ResNet is not timm's class Eva"),
        (["--model", "timm:eva_giant_patch14_224", "--model-args", "depth=1,in_chans=1"], "in_chans is 1"),
    ],
)
def test_what_can_not_be_said_is_a_usage_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*arguments, "--res", "224", "--engine", "none", "-q"]) == 2
    assert said in capsys.readouterr().err


def test_a_module_that_was_changed_afterwards_is_refused_by_the_place() -> None:
    module = timm.create_model("vit_small_patch16_dinov3", depth=2)
    module.blocks[1].mlp.act = torch.nn.ReLU()
    with pytest.raises(UsageError, match=r"blocks\.1\.mlp\.act is ReLU"):
        spec_of(module)
