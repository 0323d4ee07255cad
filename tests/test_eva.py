"""EVA-02, Perception Encoder, rope_reg and Sapiens2 against timm's own modules, built here without this package's
reference: two blocks, random weights in every parameter.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.models import zoo
from ropevit_export.models.eva_rows import EVA02, PE, ROPE_REG, SAPIENS2
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.runtime import load
from ropevit_export.values import Resolution

Arrays = dict[str, np.ndarray]
ROWS = (*ROPE_REG, *EVA02, *PE, *SAPIENS2)
# Packed SwiGLU; split with norms inside MLP and attention; attention pooling; no class token, averaged patches; RMS
# norms, of queries and keys too.
KINDS = ("eva02_tiny_336", "eva02_base_clip_224", "pe_core_small", "rope_reg1_gap_medium", "sapiens2_base")
# No norm at the end; no biases of q, k and v; no token before the patches; fewer heads of keys; heads of 76, 80 and 96.
MORE = ("eva02_base_448", "eva02_large_448", "pe_spatial_small", "pe_core_gigantic", "pe_lang_large",
        "pe_spatial_gigantic", "rope_reg1_gap_mediumd", "sapiens2_large", "sapiens2_huge", "sapiens2_5b")  # fmt: skip


def shallow(spec: ModelSpec) -> ModelSpec:
    """Two blocks: the first and, where keys have fewer heads in it, one of the middle."""
    heads = spec.kv_heads
    fewer = None if heads is None else (heads[0], heads[len(heads) // 2])
    return dataclasses.replace(spec, depths=(2,), kv_heads=fewer)


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes its time by the block."""
    monkeypatch.setattr(zoo, "_BY_NAME", {spec.short: shallow(spec) for spec in ROWS})


def timms(spec: ModelSpec, size: Resolution, tensors: dict[str, torch.Tensor] | None = None) -> Any:
    """timm's module at a size, with the seeded weights that `--weights random` takes; positions at another size than
    the file's as the authors have them, which timm has otherwise.
    """
    assert spec.timm is not None
    more = {} if spec.kv_heads is None else {"num_kv_heads": spec.kv_heads}
    model: Any = timm.create_model(spec.timm, depth=2, img_size=(size.height, size.width), num_classes=spec.classes,
                                   **more).eval()  # fmt: skip
    state = {name: tensor.clone() for name, tensor in (tensors or random_checkpoint(spec, seed=0).tensors).items()}
    bilinear = "_pe_" in spec.timm
    if "pos_embed" in state:
        prefix = model.num_prefix_tokens
        front, grid = state["pos_embed"][:, :prefix], state["pos_embed"][0, prefix:]
        side = round(len(grid) ** 0.5)
        image = grid.T.reshape(1, -1, side, side)
        rows, columns = size.height // spec.patch, size.width // spec.patch
        if (rows, columns) != (side, side):
            image = F.interpolate(image, size=(rows, columns), mode="bilinear" if bilinear else "bicubic")
        state["pos_embed"] = torch.cat([front, image.flatten(2).transpose(1, 2)], 1)
    if bilinear:
        model.rope.ref_feat_shape = None
        model.rope.init_non_persistent_buffers()
    model.load_state_dict(state, strict=True)
    return model


def theirs(spec: ModelSpec, image: np.ndarray, tensors: dict[str, torch.Tensor] | None = None) -> Arrays:
    """Every output, by timm's methods."""
    model = timms(spec, Resolution(height=image.shape[2], width=image.shape[3]), tensors)
    x = torch.from_numpy(image)
    with torch.inference_mode():
        tokens = model.forward_features(x)
        maps = model.forward_intermediates(x, indices=[0, 1], norm=True, intermediates_only=True)
        found = {"tokens": tokens, "cls": tokens[:, 0], "pooled": model.forward_head(tokens, pre_logits=True)}
        found |= {"features_0": maps[0], "features_1": maps[1], "logits": model(x)}
    return {name: tensor.numpy() for name, tensor in found.items()}


def noise(size: str) -> np.ndarray:
    resolution = Resolution.parse(size)
    rng = np.random.default_rng([resolution.height, resolution.width])
    return rng.standard_normal((1, 3, resolution.height, resolution.width)).astype(np.float32)


def outputs(spec: ModelSpec) -> str:
    names = ["pooled", "tokens", "features:0,1", *(["logits"] if spec.classes else [])]
    return ",".join([*names, "cls"] if spec.class_token else names)


def export(model: str, out: Path, *options: str) -> Path:
    arguments = ["--model", model, "--weights", "random", "--engine", "none", "-q", *options, "--out", str(out)]
    assert cli.run(arguments) == 0
    return out


def agree(bundle: Path, spec: ModelSpec, size: str) -> None:
    image = noise(size)
    ours, wanted = load(bundle).run_all(image), theirs(spec, image)
    for name, answer in ours.items():
        np.testing.assert_allclose(answer, wanted[name], atol=2e-5, err_msg=f"{name} at {size}")


def sizes(spec: ModelSpec, *grids: tuple[int, int]) -> list[str]:
    return [f"{rows * spec.patch}x{columns * spec.patch}" for rows, columns in grids]


@pytest.mark.parametrize("model", KINDS)
def test_a_baked_graph_is_timms_model(model: str, tmp_path: Path) -> None:
    spec = find_model(model)
    (size,) = sizes(spec, (5, 8))
    agree(export(model, tmp_path / "out", "--res", size, "--output", outputs(spec)), spec, size)


@pytest.mark.parametrize(
    ("model", "rope"), [("pe_core_small", "dynamic"), pytest.param("pe_core_small", "inputs", marks=pytest.mark.again)]
)
def test_one_graph_is_timms_model_at_sizes_never_named(model: str, rope: str, tmp_path: Path) -> None:
    spec = find_model(model)
    largest, *others = sizes(spec, (6, 10), (1, 1), (3, 10), (5, 2))
    out = export(model, tmp_path / "out", "--res", largest, "--rope", rope, "--output", "pooled,tokens,features:0")
    for size in (largest, *others):
        agree(out, spec, size)


@pytest.mark.slow
@pytest.mark.parametrize("rope", ["baked", "dynamic", "inputs"])
@pytest.mark.parametrize("model", [*KINDS, *MORE])
def test_every_kind_in_every_mode(model: str, rope: str, tmp_path: Path) -> None:
    spec = find_model(model)
    named = sizes(spec, (14, 14), (9, 16))
    never = [] if rope == "baked" else sizes(spec, (1, 1), (7, 3), (13, 15))
    out = export(model, tmp_path / "out", "--res", ",".join(named), "--rope", rope, "--output", outputs(spec))
    for size in (*named, *never):
        agree(out, spec, size)


@pytest.mark.slow
@pytest.mark.parametrize("model", [spec.short for spec in ROWS if "_5b" not in spec.short])
def test_every_name_is_timms_with_two_blocks(model: str, tmp_path: Path) -> None:
    spec = find_model(model)
    (size,) = sizes(spec, (4, 6))
    agree(export(model, tmp_path / "out", "--res", size, "--output", outputs(spec)), spec, size)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["eva02_small_336", "pe_core_small", "rope_reg1_gap_medium"])
def test_whole_models_are_timms(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, at the published size."""
    (spec,) = (each for each in ROWS if each.short == model)
    monkeypatch.setitem(zoo._BY_NAME, model, spec)
    monkeypatch.setattr(timm, "create_model", whole(timm.create_model))
    size = str(spec.size[0])
    agree(export(model, tmp_path / "out", "--res", size, "--output", outputs(spec)), spec, size)


def whole(create: Any) -> Any:
    """timm's constructor without this file's two blocks."""
    return lambda name, **more: create(name, **{key: value for key, value in more.items() if key != "depth"})


def test_attention_pooling_and_the_mean_are_both_there(tmp_path: Path) -> None:
    """timm's own `pool` of such a model gives attention pooling whatever it is asked for."""
    spec, image = find_model("pe_core_small"), noise("48x64")
    model = timms(spec, Resolution.parse("48x64"))
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(image))
    out = export("pe_core_small", tmp_path / "out", "--res", "48x64", "--output", "pooled", "--pool", "avg")
    np.testing.assert_allclose(load(out).run(image), tokens[:, 1:].mean(1), atol=2e-5)


def test_where_timm_resizes_otherwise_is_said(tmp_path: Path) -> None:
    out = export("pe_core_small", tmp_path / "out", "--res", "48x64", "--output", "pooled")
    assert manifest.read(out).choices == (
        "the absolute embedding is resized from 24x24 to 3x4 patches, bilinearly, and rotary positions are not scaled: "
        "as the authors do, where timm does otherwise",
    )


def planted(model: str, name: str, channel: int | None, factor: float) -> dict[str, torch.Tensor]:
    """The seeded weights with one tensor, or one of its channels, enlarged; what reads that channel is made smaller, so
    that float32 still has digits for the others.
    """
    tensors = dict(random_checkpoint(find_model(model), seed=0).tensors)
    tensors[name] = tensors[name].clone()
    tensors[name][... if channel is None else channel] *= factor
    if channel is not None:
        reader = name.replace("mlp.norm", "mlp.fc2").replace("attn.norm", "attn.proj")
        tensors[reader] = tensors[reader].clone()
        tensors[reader][:, channel] /= factor / 10
    return tensors


@pytest.mark.parametrize(
    ("model", "name", "channel", "factor"),
    [
        # The norm's result would be 1e5; its gain is in the next layer's columns.
        pytest.param("eva02_base_clip_224", "blocks.0.mlp.norm.weight", 7, 6e4, marks=pytest.mark.again),
        pytest.param("eva02_base_clip_224", "blocks.0.attn.norm.weight", 7, 6e4, marks=pytest.mark.slow),
        # The square of a value of an RMS norm would be 1e6.
        ("sapiens2_base", "reg_token", None, 3e3),
    ],
)
def test_outliers_that_a_plain_graph_rounds_to_infinity_stay_finite_in_float16(
    model: str, name: str, channel: int | None, factor: float, tmp_path: Path
) -> None:
    spec = find_model(model)
    tensors = planted(model, name, channel, factor)
    torch.save(tensors, tmp_path / "planted.pth")
    out = export(model, tmp_path / "out", "--res", "112", "--precision", "fp16", "--output", "tokens", "--weights",
                 str(tmp_path / "planted.pth"))  # fmt: skip
    rounded = [entry for entry in manifest.read(out).parity if "every result rounded" in entry.runtime]
    assert rounded
    assert all(entry.passed and entry.metrics["not_finite"] == 0 for entry in rounded)
    plain = timms(spec, Resolution.parse("112"), tensors).half()
    with torch.inference_mode():
        tokens = plain.forward_features(torch.from_numpy(noise("112")).half())
    assert not bool(torch.isfinite(tokens).all()) or spec.norm == "rms"  # timm takes the square of that in float32


def test_what_a_gate_makes_too_large_for_float16_is_refused_by_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(planted("eva02_tiny_336", "blocks.1.mlp.fc1.bias", None, 1e6), tmp_path / "planted.pth")
    arguments = ["--model", "eva02_tiny_336", "--res", "28", "--engine", "none", "-q", "--out", str(tmp_path / "out")]
    assert cli.run([*arguments, "--weights", str(tmp_path / "planted.pth"), "--precision", "fp16"]) == 1
    assert capsys.readouterr().err.startswith("error: blocks.1.mlp.")
