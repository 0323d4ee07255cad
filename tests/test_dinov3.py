"""DINOv3 and LingBot against timm's own modules, built here without this package's reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.models.adopt import adopt
from ropevit_export.models.dinov3_layouts import timm_layout
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import DINOV3, LINGBOT, find_model
from ropevit_export.request import Request
from ropevit_export.runtime import load
from ropevit_export.values import Resolution

Arrays = dict[str, np.ndarray]
# Width, MLP and biases of each kind; the others differ by their sizes only.
KINDS = ("dinov3_small", "dinov3_small_plus", "dinov3_small_qkvb", "lingbot_small")
WHOLE = (*KINDS, "dinov3_base")
NAMED = ("224", "256", "512x768", "128x384")
NEVER_NAMED = ("16", "336x208", "480x640")
META_NAMES = {"reg_token": "storage_tokens"}
OUTPUTS = "pooled,cls,tokens,features:0,1"


def timms(spec: ModelSpec, **changes: Any) -> Any:
    """timm's module with the seeded weights that `--weights random` takes."""
    assert spec.timm is not None
    model = timm.create_model(spec.timm, depth=spec.depths[0], **changes).eval()
    tensors = random_checkpoint(spec, seed=0).tensors
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, strict=True)
    return model


def theirs(spec: ModelSpec, image: np.ndarray, blocks: tuple[int, ...], **changes: Any) -> Arrays:
    """Every output at an image's own size, by timm's methods; `blocks` with the final norm."""
    model, x = timms(spec, **changes), torch.from_numpy(image)
    with torch.inference_mode():
        tokens = model.forward_features(x)
        maps = model.forward_intermediates(x, indices=list(blocks), norm=True, intermediates_only=True)
    found = {"tokens": tokens, "cls": tokens[:, 0], "pooled": tokens[:, 0]}
    found |= {f"features_{block}": feature for block, feature in zip(blocks, maps, strict=True)}
    return {name: tensor.numpy() for name, tensor in found.items()}


def noise(size: str) -> np.ndarray:
    resolution = Resolution.parse(size)
    rng = np.random.default_rng([resolution.height, resolution.width])
    return rng.standard_normal((1, 3, resolution.height, resolution.width)).astype(np.float32)


def export(model: str, out: Path, *options: str) -> Path:
    arguments = ["--model", model, "--weights", "random", "--engine", "none", "-q", *options, "--out", str(out)]
    assert cli.run(arguments) == 0
    return out


@pytest.mark.parametrize("model", [f"shallow_{kind}" for kind in KINDS])
def test_a_baked_graph_is_timms_model(model: str, tmp_path: Path) -> None:
    bundle = load(export(model, tmp_path / "out", "--res", "96x64", "--output", OUTPUTS))
    image = noise("96x64")
    ours, wanted = bundle.run_all(image), theirs(find_model(model), image, (0, 1))
    assert list(ours) == ["pooled", "cls", "tokens", "features_0", "features_1"]
    for name, answer in ours.items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("rope", ["dynamic", "inputs"])
def test_one_graph_is_timms_model_at_sizes_never_named(rope: str, tmp_path: Path) -> None:
    """Angles follow the grid: a table cut from a larger one would be wrong at every size but the largest."""
    options = ("--res", "96x160", "--rope", rope, "--batch", "1:2:3", "--output", "pooled,tokens,features:0")
    bundle = load(export("shallow_dinov3_small_plus", tmp_path / "out", *options))
    for size in ("96x160", "16", "48x160", "80x32"):
        image = np.repeat(noise(size), 2, axis=0)
        ours = bundle.run_all(image)
        wanted = theirs(find_model("shallow_dinov3_small_plus"), image, (0,))
        for name, answer in ours.items():
            np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=f"{name} at {size}")


@pytest.mark.slow
@pytest.mark.parametrize("model", [each.short for each in (*DINOV3, *LINGBOT)])
def test_every_name_is_timms_with_two_blocks(model: str, tmp_path: Path) -> None:
    spec = find_model(f"shallow_{model}")
    size = f"{4 * spec.multiple}x{6 * spec.multiple}"
    bundle = load(export(spec.short, tmp_path / "out", "--res", size, "--output", OUTPUTS))
    image = noise(size)
    wanted = theirs(spec, image, (0, 1))
    for name, answer in bundle.run_all(image).items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", WHOLE)
@pytest.mark.parametrize("rope", ["baked", "dynamic", "inputs"])
def test_whole_models_are_timms(model: str, rope: str, tmp_path: Path) -> None:
    sizes = NAMED if rope == "baked" else (*NAMED, *NEVER_NAMED)
    options = ("--res", ",".join(NAMED), "--rope", rope, "--output", "pooled,cls,tokens,features:2,5,8,11")
    bundle = load(export(model, tmp_path / "out", *options))
    for size in sizes:
        image = noise(size)
        ours, wanted = bundle.run_all(image), theirs(find_model(model), image, (2, 5, 8, 11))
        for name, answer in ours.items():
            np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=f"{name} at {size}")


def test_features_may_be_left_as_they_are_and_end_the_graph(tmp_path: Path) -> None:
    """Nothing behind the last block read is in the graph: here all of the second block."""
    whole = export("shallow_dinov3_small", tmp_path / "whole", "--res", "64", "--output", "tokens")
    cut = export("shallow_dinov3_small", tmp_path / "cut", "--res", "64", "--output", "features:0", "--features-raw")
    image = noise("64")
    with torch.inference_mode():
        (wanted,) = timms(find_model("shallow_dinov3_small")).forward_intermediates(
            torch.from_numpy(image), indices=[0], norm=False, intermediates_only=True
        )
    np.testing.assert_allclose(load(cut).run(image), wanted.numpy(), atol=2e-5)
    assert (cut / "weights.data").stat().st_size < 0.6 * (whole / "weights.data").stat().st_size


def test_pooling_is_the_authors_unless_timms_is_asked_for(tmp_path: Path) -> None:
    image = noise("64")
    with torch.inference_mode():
        averaged = timms(find_model("shallow_dinov3_small"))(torch.from_numpy(image)).numpy()  # timm's own default
    chosen = export("shallow_dinov3_small", tmp_path / "avg", "--res", "64", "--pool", "avg")
    np.testing.assert_allclose(load(chosen).run(image), averaged, atol=2e-5)
    default = export("shallow_dinov3_small", tmp_path / "token", "--res", "64")
    assert np.abs(load(default).run(image) - averaged).max() > 0.1
    listed = manifest.read(default)
    assert listed.choices == (
        "the output is pooled: shallow_dinov3_small is published without a head",
        "pooled is the class token, as the authors take it: --pool chooses",
    )
    assert [(output.name, output.pool) for output in listed.artifacts[0].outputs] == [("pooled", "token")]


def test_a_head_fine_tuned_with_timm_reads_what_timm_pools(tmp_path: Path) -> None:
    spec = find_model("shallow_dinov3_small")
    model = timm.create_model(spec.timm, depth=spec.depths[0], num_classes=7).eval()
    state = dict(random_checkpoint(spec, seed=0).tensors)
    state |= {"head.weight": torch.randn(7, 384) * 0.05, "head.bias": torch.randn(7)}
    model.load_state_dict(state, strict=True)
    torch.save(state, tmp_path / "tuned.pth")
    out = export("shallow_dinov3_small", tmp_path / "out", "--res", "64", "--output", "logits", "--weights",
                 str(tmp_path / "tuned.pth"))  # fmt: skip
    image = noise("64")
    with torch.inference_mode():
        wanted = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(load(out).run(image), wanted, atol=2e-5)
    assert any("as timm trains heads" in choice for choice in manifest.read(out).choices)


def transformers_model(spec: ModelSpec) -> Any:
    """transformers' own module, its parameters drawn at random so that all of them matter."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=spec.dims[0], num_hidden_layers=spec.depths[0], num_attention_heads=spec.heads[0],
        intermediate_size=spec.mlp_width(0), use_gated_mlp=spec.mlp == "swiglu",
        hidden_act="silu" if spec.mlp == "swiglu" else "gelu", num_register_tokens=spec.registers,
        query_bias=spec.qkv_bias == "qv", value_bias=spec.qkv_bias == "qv",
    )  # fmt: skip
    model = transformers.DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            about_one = "norm" in name and name.endswith("weight")
            scale = value[0].numel() ** -0.5 if value.ndim > 1 and "token" not in name else 0.1
            value.copy_(1 + 0.1 * drawn if about_one else drawn * scale + 0.3 * ("lambda1" in name))
    return model


@pytest.mark.parametrize("model", ["shallow_dinov3_small_qkvb", "shallow_dinov3_small_plus"])
def test_weights_in_the_layout_of_transformers_give_the_same_graph(model: str, tmp_path: Path) -> None:
    spec = find_model(model)
    theirs_model = transformers_model(spec)
    theirs_model.save_pretrained(tmp_path / "saved")
    tensors = dict(timm_layout(theirs_model.state_dict()).tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "timm.safetensors")
    options = ("--res", "64x96", "--output", "pooled,tokens")
    ours = export(model, tmp_path / "a", *options, "--weights", str(tmp_path / "saved"))
    again = export(model, tmp_path / "b", *options, "--weights", str(tmp_path / "timm.safetensors"))
    assert (ours / "weights.data").read_bytes() == (again / "weights.data").read_bytes()
    graphs = [onnx.load(each / "model-64x96.onnx", load_external_data=False).graph for each in (ours, again)]
    assert graphs[0].SerializeToString() == graphs[1].SerializeToString()
    image = noise("64x96")
    with torch.inference_mode():
        wanted = theirs_model(pixel_values=torch.from_numpy(image))
    found = load(ours).run_all(image)
    np.testing.assert_allclose(found["tokens"], wanted.last_hidden_state.numpy(), atol=2e-5)
    np.testing.assert_allclose(found["pooled"], wanted.pooler_output.numpy(), atol=2e-5)
    assert "the file is in the layout of transformers" in manifest.read(ours).choices


def test_metas_periods_win_over_the_formula_and_zero_biases_are_left_out(tmp_path: Path) -> None:
    """Meta's files hold periods rounded to bfloat16, which its code uses; tokens move by what timm leaves out."""
    spec = find_model("shallow_dinov3_small")
    tensors = dict(random_checkpoint(spec, seed=0).tensors)
    periods = torch.tensor([1 / frequency for frequency in spec.rope.magnitudes(64)])
    metas = {META_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    metas = {name.replace(".gamma_", ".ls").replace("ls1", "ls1.gamma").replace("ls2", "ls2.gamma"): tensor
             for name, tensor in metas.items()}  # fmt: skip
    metas |= {f"blocks.{block}.attn.qkv.{leaf}": torch.zeros(3 * 384)
              for block in range(spec.depths[0]) for leaf in ("bias", "bias_mask")}  # fmt: skip
    torch.save(metas | {"rope_embed.periods": periods.bfloat16()}, tmp_path / "meta.pth")
    # The first block shows it.
    options = ("--res", "64x96", "--output", "features:0", "--weights", str(tmp_path / "meta.pth"))
    image = noise("64x96")
    model = timms(spec)
    model.rope.periods.copy_(periods.bfloat16().float())
    with torch.inference_mode():
        (map_of_0,) = model.forward_intermediates(
            torch.from_numpy(image), indices=[0], norm=True, intermediates_only=True
        )
    wanted = map_of_0.numpy()
    for rope in ("baked", "dynamic", "inputs"):
        out = export("shallow_dinov3_small", tmp_path / rope, *options, "--rope", rope)
        np.testing.assert_allclose(load(out).run(image), wanted, atol=2e-5, err_msg=rope)
    assert np.abs(wanted - theirs(spec, image, (0,))["features_0"]).max() > 1e-4
    assert manifest.read(out).choices == (
        "the file is in the layout of Meta",
        "the file's biases of queries and values are all 0, and left out",
        "rotary periods are the file's, which differ from theta 100 by up to 1.9e-03",
    )


def planted(folder: Path, name: str, factor: float, model: str = "shallow_dinov3_small") -> tuple[str, str]:
    """Options for the seeded weights of two blocks with one tensor enlarged."""
    tensors = dict(random_checkpoint(find_model(model), seed=0).tensors)
    torch.save(tensors | {name: tensors[name] * factor}, folder / "planted.pth")
    return "--weights", str(folder / "planted.pth")


@pytest.mark.parametrize(
    ("model", "precision"),
    [("shallow_dinov3_small", "fp16"), ("shallow_dinov3_small_plus", "fp16"), ("shallow_dinov3_small", "bf16")],
)
def test_registers_a_thousand_times_the_rest_stay_finite_in_16_bits(model: str, precision: str, tmp_path: Path) -> None:
    weights = planted(tmp_path, "reg_token", 1e3, model)
    out = export(model, tmp_path / "out", "--res", "64", "--precision", precision, "--output",
                 "cls,tokens", *weights)  # fmt: skip
    listed = manifest.read(out)
    rounded = [entry for entry in listed.parity if "every result rounded" in entry.runtime]
    assert {entry.output for entry in rounded} == {"cls", "tokens"}
    assert all(entry.passed and entry.metrics["not_finite"] == 0 for entry in rounded)
    products = {row.format: row.products for row in listed.artifacts[0].census if row.products}
    # The patch convolution stays in float32 in bfloat16 graphs.
    assert products.keys() == ({"fp16"} if precision == "fp16" else {"bf16", "fp32"})
    assert products.get("fp32", 1) == 1


@pytest.mark.parametrize(
    ("name", "factor", "place"),
    [
        ("reg_token", 1e6, "embed"),
        ("blocks.0.norm1.weight", 1e3, "blocks.0.attention"),  # scores, by its square
        ("blocks.1.mlp.fc2.bias", 1e7, "blocks.1.mlp.fc2"),
    ],
)
def test_what_float16_cannot_hold_is_refused_by_its_place(
    name: str, factor: float, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = planted(tmp_path, name, factor)
    arguments = ["--model", "shallow_dinov3_small", "--res", "64", "--precision", "fp16", "--engine", "none", "-q"]
    assert cli.run([*arguments, *weights, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {place}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", [*DINOV3, *LINGBOT], ids=lambda spec: spec.short)
def test_parameters_are_timms(spec: ModelSpec) -> None:
    """Names and shapes of all of them, 7B too: on `meta` nothing is allocated."""
    with torch.device("meta"):
        model = timm.create_model(spec.timm)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert FAMILIES[spec.family].shapes(spec, 0) == wanted


@pytest.mark.parametrize("spec", [*DINOV3, *LINGBOT], ids=lambda spec: spec.short)
def test_preprocessing_is_the_authors(spec: ModelSpec) -> None:
    """Mean and deviation as timm's configuration has them; squashed bilinearly, as the authors' own code does."""
    config = timm.get_pretrained_cfg(f"{spec.timm}.{spec.tag}")
    assert (spec.transform.mean, spec.transform.std) == (config.mean, config.std)
    assert (spec.transform.interpolation, spec.transform.crop_mode) == ("bilinear", "squash")


@pytest.mark.parametrize(
    ("name", "short", "repo"),
    [
        ("timm/vit_small_patch16_dinov3.lvd1689m", "dinov3_small", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3_small", "facebook/dinov3-vits16-pretrain-lvd1689m"),
        ("hf-hub:timm/vit_large_patch16_dinov3.sat493m", "dinov3_sat_large", "timm/vit_large_patch16_dinov3.sat493m"),
        ("naver-ai/rope_mixed_deit_small_patch16_LS", "rope_mixed_deit_small",
         "naver-ai/rope_mixed_deit_small_patch16_LS"),
        ("vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", "eupe_base", "timm/vit_base_patch16_dinov3_qkvb.eupe_lvd1689m"),
    ],
)  # fmt: skip
def test_repositories_of_the_hub_find_their_row(name: str, short: str, repo: str) -> None:
    """Weights then come from that repository first."""
    spec = find_model(name)
    assert (spec.short, spec.hub[0].repo) == (short, repo)


def test_a_request_without_a_head_can_still_ask_for_one_of_a_file() -> None:
    spec = find_model("dinov3_small")
    request = Request(model=spec, resolutions=(Resolution.parse("64"),))
    assert [output.name for output in request.outputs] == ["pooled"]
    weights = adopt(spec, random_checkpoint(spec, seed=0))
    assert weights.classes == 0
