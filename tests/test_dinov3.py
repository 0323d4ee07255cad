"""DINOv3 and LingBot against timm's own modules, built here without this package's reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.models import zoo
from ropevit_export.models.adopt import adopt
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import DINOV3, LINGBOT, find_model
from ropevit_export.request import Request
from ropevit_export.runtime import load
from ropevit_export.values import Resolution

Arrays = dict[str, np.ndarray]
SHALLOW = 2
# Width, MLP and biases of each kind; the others differ by their sizes only.
KINDS = ("dinov3_small", "dinov3_small_plus", "dinov3_small_qkvb", "lingbot_small")
WHOLE = (*KINDS, "dinov3_base")
NAMED = ("224", "256", "512x768", "128x384")
NEVER_NAMED = ("16", "336x208", "640x480")
OUTPUTS = "pooled,cls,tokens,features:0,1"


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows with two blocks only: tracing takes its time by the block."""
    monkeypatch.setattr(
        zoo, "_BY_NAME", {spec.short: dataclasses.replace(spec, depths=(SHALLOW,)) for spec in (*DINOV3, *LINGBOT)}
    )


def timms(spec: ModelSpec, **changes: Any) -> torch.nn.Module:
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


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("model", KINDS)
def test_a_baked_graph_is_timms_model(model: str, tmp_path: Path) -> None:
    bundle = load(export(model, tmp_path / "out", "--res", "96x64", "--output", OUTPUTS))
    image = noise("96x64")
    ours, wanted = bundle.run_all(image), theirs(find_model(model), image, (0, 1))
    assert list(ours) == ["pooled", "cls", "tokens", "features_0", "features_1"]
    for name, answer in ours.items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=name)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("rope", ["dynamic", "inputs"])
def test_one_graph_is_timms_model_at_sizes_never_named(rope: str, tmp_path: Path) -> None:
    """Angles follow the grid: a table cut from a larger one would be wrong at every size but the largest."""
    options = ("--res", "96x160", "--rope", rope, "--batch", "1:2:3", "--output", "pooled,tokens,features:0")
    bundle = load(export("dinov3_small_plus", tmp_path / "out", *options))
    for size in ("96x160", "16", "48x160", "80x32"):
        image = np.repeat(noise(size), 2, axis=0)
        ours = bundle.run_all(image)
        wanted = theirs(find_model("dinov3_small_plus"), image, (0,))
        for name, answer in ours.items():
            np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=f"{name} at {size}")


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


@pytest.mark.usefixtures("shallow")
def test_features_may_be_left_as_they_are_and_end_the_graph(tmp_path: Path) -> None:
    """Nothing behind the last block read is in the graph: here all of the second block."""
    whole = export("dinov3_small", tmp_path / "whole", "--res", "64", "--output", "tokens")
    cut = export("dinov3_small", tmp_path / "cut", "--res", "64", "--output", "features:0", "--features-raw")
    image = noise("64")
    with torch.inference_mode():
        (wanted,) = timms(find_model("dinov3_small")).forward_intermediates(
            torch.from_numpy(image), indices=[0], norm=False, intermediates_only=True
        )
    np.testing.assert_allclose(load(cut).run(image), wanted.numpy(), atol=2e-5)
    assert (cut / "weights.data").stat().st_size < 0.6 * (whole / "weights.data").stat().st_size


@pytest.mark.usefixtures("shallow")
def test_pooling_is_the_authors_unless_timms_is_asked_for(tmp_path: Path) -> None:
    image = noise("64")
    with torch.inference_mode():
        averaged = timms(find_model("dinov3_small"))(torch.from_numpy(image)).numpy()  # timm's own default
    chosen = export("dinov3_small", tmp_path / "avg", "--res", "64", "--pool", "avg")
    np.testing.assert_allclose(load(chosen).run(image), averaged, atol=2e-5)
    default = export("dinov3_small", tmp_path / "token", "--res", "64")
    assert np.abs(load(default).run(image) - averaged).max() > 0.1
    listed = manifest.read(default)
    assert listed.choices == (
        "the output is pooled: dinov3_small is published without a head",
        "pooled is the class token, as the authors take it: --pool chooses",
    )
    assert [(output.name, output.pool) for output in listed.artifacts[0].outputs] == [("pooled", "token")]


@pytest.mark.usefixtures("shallow")
def test_a_head_fine_tuned_with_timm_reads_what_timm_pools(tmp_path: Path) -> None:
    spec = find_model("dinov3_small")
    model = timm.create_model(spec.timm, depth=SHALLOW, num_classes=7).eval()
    state = dict(random_checkpoint(spec, seed=0).tensors)
    state |= {"head.weight": torch.randn(7, 384) * 0.05, "head.bias": torch.randn(7)}
    model.load_state_dict(state, strict=True)
    torch.save(state, tmp_path / "tuned.pth")
    out = export("dinov3_small", tmp_path / "out", "--res", "64", "--output", "logits", "--weights",
                 str(tmp_path / "tuned.pth"))  # fmt: skip
    image = noise("64")
    with torch.inference_mode():
        wanted = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(load(out).run(image), wanted, atol=2e-5)
    assert any("as timm trains heads" in choice for choice in manifest.read(out).choices)


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
