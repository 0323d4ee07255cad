"""Checkpoint files of every kind, and from their tensors to a model's weights."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ropevit_export.checkpoint import file, source
from ropevit_export.errors import CheckpointError
from ropevit_export.machine import shards
from ropevit_export.models import adopt as adopting
from ropevit_export.models import reference
from ropevit_export.models.adopt import adopt
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import MODELS, find_model
from ropevit_export.request import Request
from ropevit_export.values import Checkpoint, Resolution, Weights
from tests.conftest import outputs_of

Tensors = dict[str, torch.Tensor]

SQUARE = Resolution(height=224, width=224)
DEIT_MIXED = find_model("rope_mixed_deit_small")
SWIN_AXIAL = find_model("swin_rope_axial_tiny")
SWIN_MIXED = find_model("swin_rope_mixed_tiny")


def small() -> Tensors:
    """Too few tensors for any model: enough to read a file."""
    return {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([0.5, -0.5])}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def saved(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


# Reading files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_an_official_file_is_read_from_under_its_model_key(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"official{suffix}", {"model": small()})
    assert_same(file.read(path).tensors, small())


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "model.safetensors")
    assert_same(file.read(tmp_path / "model.safetensors").tensors, small())


def test_a_bare_dictionary_of_tensors_is_read(tmp_path: Path) -> None:
    assert_same(file.read(saved(tmp_path / "bare.pth", small())).tensors, small())


def test_a_file_in_torchs_format_of_before_1_6_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", {"model": small()}, legacy=True)
    assert_same(file.read(path).tensors, small())


def test_a_training_checkpoint_gives_its_weights_alone(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "optimizer": optimizer.state_dict(),
        "epoch": 399,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="rope_mixed_deit_small_patch16_LS", lr=4e-3, distributed=False),
        "model_ema": {name: tensor + 1 for name, tensor in small().items()},
        "model": small(),
    }
    found = file.read(saved(tmp_path / "checkpoint.pth", content)).dictionaries
    assert_same(found["model"], small())
    assert found.keys() == {"model", "model_ema", "optimizer.state.0"}


@pytest.mark.parametrize("container", ["state_dict", "model_ema", "module"])
def test_weights_are_found_under_the_names_that_training_scripts_give_them(tmp_path: Path, container: str) -> None:
    assert_same(file.read(saved(tmp_path / "checkpoint.pth", {container: small(), "epoch": 3})).tensors, small())


def test_a_file_is_recorded_by_its_name_and_hash_without_its_folder(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.pth", {"model": small()})
    found = file.read(path)
    assert (found.source, found.revision, found.trained) == ("mine.pth", None, True)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_may_name_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.pth", small())
    request = Request(model=DEIT_MIXED, resolutions=(SQUARE,), weights=str(path))
    assert source.load(request, lambda: pytest.fail("random weights")).source == "mine.pth"


def test_random_weights_are_drawn_without_a_look_at_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropevit_export.checkpoint.hub.fetch", lambda *_: pytest.fail("asked the hub"))
    drawn = checkpoint_of(small())
    request = Request(model=DEIT_MIXED, resolutions=(SQUARE,), weights="random")
    assert source.load(request, lambda: drawn) is drawn


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_an_error(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_file(small(), path)
    else:
        saved(path, {"model": small()}, legacy=kind == "legacy")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.\w+ can't be read as a checkpoint"):
        file.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("text", ["not a checkpoint\n", "<!DOCTYPE html><html>Sign in</html>", "{}", "()0abc"])
def test_a_text_file_with_a_checkpoints_suffix_is_an_error(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"text\.\w+ can't be read as a checkpoint"):
        file.read(path)


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_the_pickle_that_must_not_run_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    content = {"model": small(), "args": Malicious(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        saved(path, content, legacy=kind == "legacy")
    with pytest.raises(
        CheckpointError, match=r"evil\.pth can't be read as a checkpoint: it calls .*Nothing of it was run"
    ):
        file.read(path)
    assert not marker.exists()


def test_a_missing_file_is_an_error_that_lists_what_weights_may_be(tmp_path: Path) -> None:
    path = tmp_path / "absent.pth"
    expected = (
        f"no checkpoint at {path}: --weights takes auto, pretrained, random or an existing file; what is elsewhere has "
        "to be downloaded first."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        file.read(path)


@pytest.mark.parametrize("name", ["folder.pth", "folder.index.json"])
@pytest.mark.parametrize("files", [[], ["a.pth", "b.ckpt"], ["optimizer.bin", "README.md"]])
def test_a_folder_without_weights_is_an_error_that_lists_what_was_looked_for(
    tmp_path: Path, name: str, files: list[str]
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for each in files:
        saved(folder / each, small())
    beside = ", but with a.pth, b.ckpt" if "a.pth" in files else ""
    expected = (
        f"{folder} is a folder without model.safetensors, model.safetensors.index.json, pytorch_model.bin "
        f"or pytorch_model.bin.index.json{beside}: give the file itself."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        file.read(folder)


def test_the_only_weights_of_a_folder_are_read(tmp_path: Path) -> None:
    saved(tmp_path / "best.ckpt", {"state_dict": small()})
    saved(tmp_path / "optimizer.bin", {"state": {}})
    found = file.read(tmp_path)
    assert found.source == "best.ckpt"
    assert_same(found.tensors, small())


@pytest.mark.parametrize(
    "name", ["weights.npz", "model_best.pth.tar", "weights.th", "weights", "x.safetensors", "x.json"]
)
def test_the_content_decides_what_a_file_is(tmp_path: Path, name: str) -> None:
    assert_same(file.read(saved(tmp_path / name, small())).tensors, small())
    save_file(small(), tmp_path / f"other-{name}")
    assert_same(file.read(tmp_path / f"other-{name}").tensors, small())


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": {}}, "text", 3, {0: torch.ones(2)}, None])
def test_a_file_without_named_tensors_is_an_error_that_says_so(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth holds no dictionary of tensors: save its tensors alone"):
        file.read(saved(tmp_path / "x.pth", content))


def test_other_things_beside_tensors_are_no_tensors(tmp_path: Path) -> None:
    assert_same(file.read(saved(tmp_path / "mixed.pth", {**small(), "epoch": 3, "names": ["a"]})).tensors, small())


# Shards and folders


def sharded(folder: Path, tensors: Tensors, *, suffix: str = ".safetensors") -> Path:
    """One tensor a shard, as `save_pretrained` names them; the path of their index."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    where = {name: f"{stem}-{i:05}-of-{len(tensors):05}{suffix}" for i, name in enumerate(tensors, 1)}
    for name, part in where.items():
        if suffix == ".safetensors":
            save_file({name: tensors[name]}, folder / part)
        else:
            saved(folder / part, {name: tensors[name]})
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("by", ["folder", "index"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_as_one_checkpoint(tmp_path: Path, suffix: str, by: str) -> None:
    index = sharded(tmp_path, small(), suffix=suffix)
    found = file.read(index if by == "index" else tmp_path)
    assert_same(found.tensors, small())
    assert found.source == index.name


def test_shards_are_recorded_by_the_hash_that_sha256sum_gives_of_its_own_list(tmp_path: Path) -> None:
    index = sharded(tmp_path, small())
    lines = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    ]
    before = file.read(index).sha256
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    sharded(tmp_path, small() | {"head.bias": torch.zeros(2)})
    assert file.read(index).sha256 != before


def test_a_checkpoint_is_known_by_the_same_hash_before_it_is_read(tmp_path: Path) -> None:
    index = sharded(tmp_path, small())
    alone = saved(tmp_path / "mine.pth", small())
    for path in (index, tmp_path, alone):
        assert shards.known_by(path) == file.read(path).sha256
    assert shards.known_by(alone) == hashlib.sha256(alone.read_bytes()).hexdigest()


def test_a_folders_weights_are_taken_in_transformers_order(tmp_path: Path) -> None:
    kinds = ("pytorch_model.bin.index.json", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors")
    for kind in kinds:
        if kind.endswith(".index.json"):
            sharded(tmp_path, small(), suffix=Path(kind.removesuffix(".index.json")).suffix)
        elif kind.endswith(".bin"):
            saved(tmp_path / kind, small())
        else:
            save_file(small(), tmp_path / kind)
        found = file.read(tmp_path)
        assert found.source == kind
        assert_same(found.tensors, small())


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = sharded(tmp_path, small())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    expected = f"{index} lists 2 shards, without model-00002-of-00002.safetensors beside it: add what is missing."
    for path in (index, tmp_path):
        with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
            file.read(path)


@pytest.mark.parametrize("held", [{"head.weight": 1.0, "head.extra": 1.0}, {"head.other": 1.0}])
def test_a_shard_of_another_checkpoint_is_refused(tmp_path: Path, held: dict[str, float]) -> None:
    index = sharded(tmp_path, small())
    part = tmp_path / "model-00001-of-00002.safetensors"
    save_file({name: torch.tensor(value) for name, value in held.items()}, part)
    odd = ", ".join(sorted(held.keys() ^ {"head.weight"}))
    expected = f"{part} and model.safetensors.index.json differ in {odd}: take all files from one checkpoint."
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        file.read(index)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path, small())
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors can't be read .* git-lfs pointer"):
        file.read(index)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}']
    + [json.dumps({"weight_map": {"w": name}}) for name in ("../up.bin", "/etc/up.bin", "a\\up.bin", "..", "", 3)],
)
def test_an_index_names_files_beside_it_and_nothing_else(tmp_path: Path, content: str) -> None:
    saved(tmp_path / "up.bin", small())
    index = tmp_path / "inner" / "pytorch_model.bin.index.json"
    index.parent.mkdir()
    index.write_text(content)
    expected = f"{index} is not an index of shards: needs a weight_map of tensors to files beside it."
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        file.read(index)


@pytest.mark.parametrize("content", [b"", b"<html>Sign in</html>", b"\xff\xfe"])
def test_an_index_that_is_not_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json can't be read as an index of shards, it is no JSON: "):
        file.read(tmp_path)


# Adopting tensors


def checkpoint_of(tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(dictionaries={"": tensors}, source="mine.pth", revision=None, sha256="0" * 64, trained=True)


def hollow(spec: ModelSpec, *, classes: int = 1000) -> Tensors:
    """The model's parameters as the authors' file names them, all zero; they take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in FAMILIES[spec.family].shapes(spec, classes).items()}


def axial_frequencies(spec: ModelSpec, heads: int, theta: float) -> torch.Tensor:
    """(2, heads, pairs): the first half of the pairs turns along x, the second along y."""
    magnitude = torch.tensor([theta ** (-4 * step / spec.head_dim) for step in range(spec.head_dim // 4)])
    x, y = torch.cat([magnitude, 0 * magnitude]), torch.cat([0 * magnitude, magnitude])
    return torch.stack([x, y])[:, None].repeat(1, heads, 1)


def with_axial_frequencies(spec: ModelSpec, tensors: Tensors, theta: float) -> Tensors:
    frequencies = {
        f"{prefix}attn.rope_freqs": axial_frequencies(spec, spec.heads[stage], theta) for prefix, stage in spec.blocks
    }
    return tensors | frequencies


def refusal(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as raised:
        adopt(spec, checkpoint_of(tensors))
    return str(raised.value)


@pytest.fixture(scope="module", params=["rope_mixed_deit_small", "deit_small", "swin_tiny", "swin_rope_axial_tiny"])
def official(request: pytest.FixtureRequest) -> tuple[ModelSpec, Weights]:
    """A model and weights that were adopted from the authors' layout."""
    spec = find_model(request.param)
    return spec, adopt(spec, random_checkpoint(spec, 0))


def test_official_tensors_are_adopted_as_they_are(official: tuple[ModelSpec, Weights]) -> None:
    spec, weights = official
    assert weights.classes == 1000
    assert_same(weights.tensors, random_checkpoint(spec, 0).tensors)


def test_timms_layout_is_adopted_to_the_same_weights(official: tuple[ModelSpec, Weights]) -> None:
    spec, weights = official
    timms = reference.build(spec, weights, SQUARE, outputs_of(spec, "logits")).model.state_dict()
    assert timms.keys() != weights.tensors.keys()
    assert_same(adopt(spec, checkpoint_of(timms)).tensors, weights.tensors)


def test_timms_rotary_frequencies_are_those_of_all_heads_one_after_the_other() -> None:
    tensors = hollow(DEIT_MIXED)
    frequencies = torch.randn(2, 12, 6, 32)
    del tensors["freqs"]
    tensors["rope.freqs"] = frequencies
    assert torch.equal(adopt(DEIT_MIXED, checkpoint_of(tensors)).tensors["freqs"], frequencies.reshape(2, 12, 192))


@pytest.mark.parametrize("short", [spec.short for spec in MODELS if spec.short.endswith(("deit_small", "tiny"))])
def test_a_model_adopts_its_own_parameters(short: str) -> None:
    spec = find_model(short)
    assert adopt(spec, checkpoint_of(hollow(spec))).tensors.keys() == FAMILIES[spec.family].shapes(spec, 1000).keys()


def test_a_checkpoint_file_becomes_weights(tmp_path: Path) -> None:
    drawn = random_checkpoint(SWIN_AXIAL, 1)
    path = saved(tmp_path / "swin.pth", {"model": dict(drawn.tensors)})
    assert_same(adopt(SWIN_AXIAL, file.read(path)).tensors, drawn.tensors)


@pytest.mark.parametrize("head", ["head", "head.fc"])
def test_the_number_of_classes_is_the_files(head: str) -> None:
    tensors = {name.replace("head", head): tensor for name, tensor in hollow(SWIN_AXIAL, classes=37).items()}
    weights = adopt(SWIN_AXIAL, checkpoint_of(tensors))
    assert weights.classes == 37
    assert weights.tensors["head.weight"].shape == (37, 768)


def test_a_deit_files_position_buffers_are_ignored() -> None:
    tensors = hollow(DEIT_MIXED)
    buffers = {"freqs_t_x": torch.zeros(196), "freqs_t_y": torch.zeros(196)}
    assert adopt(DEIT_MIXED, checkpoint_of(tensors | buffers)).tensors.keys() == tensors.keys()


def test_a_swin_files_position_index_and_mask_buffers_are_ignored() -> None:
    tensors = hollow(SWIN_MIXED)
    buffers = {
        "layers.0.blocks.0.attn.rope_t_x": torch.zeros(49),
        "layers.0.blocks.0.attn.rope_t_y": torch.zeros(49),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    assert adopt(SWIN_MIXED, checkpoint_of(tensors | buffers)).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_axial_swin_files_published_frequencies_are_ignored(dtype: torch.dtype) -> None:
    tensors = hollow(SWIN_AXIAL)
    file_tensors = {name: each.to(dtype) for name, each in with_axial_frequencies(SWIN_AXIAL, tensors, 50.0).items()}
    assert adopt(SWIN_AXIAL, checkpoint_of(file_tensors)).tensors.keys() == tensors.keys()


@pytest.mark.parametrize("theta", [10.0, 49.9, 100.0])
def test_an_axial_swin_file_trained_with_another_theta_is_refused(theta: float) -> None:
    assert re.search(
        r"mine\.pth: layers\.0\.blocks\.0\.attn\.rope_freqs differs by \S+ from axial frequencies of theta 50: "
        r"this checkpoint learned its frequencies or was trained with another theta",
        refusal(SWIN_AXIAL, with_axial_frequencies(SWIN_AXIAL, hollow(SWIN_AXIAL), theta)),
    )


def test_axial_frequencies_of_another_shape_are_refused() -> None:
    tensors = hollow(SWIN_AXIAL) | {"layers.0.blocks.0.attn.rope_freqs": torch.zeros(49, 16)}
    assert "layers.0.blocks.0.attn.rope_freqs is torch.float32 (49, 16), needs floating-point (2, heads, 16)." in (
        refusal(SWIN_AXIAL, tensors)
    )


def test_missing_parameters_are_named() -> None:
    tensors = hollow(DEIT_MIXED)
    del tensors["norm.bias"], tensors["freqs"]
    assert refusal(DEIT_MIXED, tensors) == (
        "mine.pth does not fit rope_mixed_deit_small_patch16_LS: missing freqs, norm.bias."
    )


def test_unexpected_parameters_are_named() -> None:
    tensors = hollow(DEIT_MIXED) | {"head_dist.weight": torch.zeros(1000, 384)}
    text = refusal(DEIT_MIXED, tensors)
    assert "does not fit rope_mixed_deit_small_patch16_LS: unexpected head_dist.weight." in text
    assert text.endswith("It is of a distilled model, with two heads and a second class token: no model here has them.")


def test_parameters_of_another_shape_are_named_with_the_shape_they_need() -> None:
    tensors = hollow(DEIT_MIXED) | {"norm.bias": torch.zeros(385), "cls_token": torch.zeros(1, 384)}
    assert "wrong shape cls_token (1, 384), needs (1, 1, 384), norm.bias (385,), needs (384,)." in (
        refusal(DEIT_MIXED, tensors)
    )


def test_all_faults_of_a_file_are_named_at_once() -> None:
    tensors = hollow(DEIT_MIXED) | {"extra": torch.zeros(1), "head.bias": torch.zeros(5)}
    del tensors["cls_token"]
    assert refusal(DEIT_MIXED, tensors) == (
        "mine.pth does not fit rope_mixed_deit_small_patch16_LS: missing cls_token; unexpected extra; "
        "wrong shape head.bias (5,), needs (1000,)."
    )


def test_a_long_list_of_names_is_cut_short() -> None:
    tensors = {name: tensor for name, tensor in hollow(DEIT_MIXED).items() if not name.startswith("blocks.11.")}
    assert "missing blocks.11.attn.proj.bias, blocks.11.attn.proj.weight, " in refusal(DEIT_MIXED, tensors)
    assert " and 8 more. " in refusal(DEIT_MIXED, tensors)


def test_a_head_of_another_size_does_not_send_the_user_to_another_model() -> None:
    plain = find_model("deit_small")
    assert refusal(plain, hollow(plain) | {"head.bias": torch.zeros(5)}).endswith("head.bias (5,), needs (1000,).")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("rope_mixed_deit_small", "deit_small"),
        ("rope_mixed_deit_small", "rope_axial_deit_small"),
        ("rope_axial_deit_small", "rope_mixed_deit_small"),
        ("rope_mixed_ape_deit_large", "rope_mixed_ape_deit_small"),
        ("rope_mixed_deit_base", "swin_tiny"),
        ("swin_tiny", "rope_axial_deit_small"),
        ("swin_tiny", "swin_rope_axial_tiny"),
        ("swin_base", "swin_small"),
        ("swin_rope_axial_tiny", "swin_tiny"),
        ("swin_rope_mixed_tiny", "swin_tiny"),
        ("swin_rope_mixed_tiny", "swin_rope_axial_tiny"),
        ("swin_rope_mixed_tiny", "rope_mixed_deit_small"),
    ],
)
def test_another_models_checkpoint_is_refused_with_that_models_name(given: str, wanted: str) -> None:
    owner = find_model(given)
    text = refusal(find_model(wanted), hollow(owner, classes=10))
    assert text.endswith(f" Its parameters are those of {owner.name}: try --model {given}.")


@pytest.mark.parametrize("wanted", ["swin_tiny", "rope_mixed_deit_small"])
def test_an_axial_swin_file_with_its_frequencies_is_refused_with_its_models_name(wanted: str) -> None:
    tensors = with_axial_frequencies(SWIN_AXIAL, hollow(SWIN_AXIAL), 50.0)
    assert " those of swin_rope_axial_tiny_patch4_window7_224 or swin_rope_mixed_tiny_patch4_window7_224: try " in (
        refusal(find_model(wanted), tensors)
    )


def test_timms_file_of_another_model_is_refused_with_that_models_name() -> None:
    tensors = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): tensor
        for name, tensor in hollow(find_model("swin_tiny")).items()
    }
    assert refusal(DEIT_MIXED, tensors).endswith(" try --model swin_tiny.")


def test_a_file_of_more_tensors_than_any_model_has_is_not_compared_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100,000 tensors that took two minutes."""
    compared: list[str] = []

    def owns(spec: ModelSpec, *rest: object) -> bool:
        compared.append(spec.name)
        return False

    monkeypatch.setattr(adopting, "_owns", owns)
    few, many = ({f"blocks.{index}.x": torch.zeros(1) for index in range(count)} for count in (10, 10_001))
    assert "missing blocks.0.attn" in refusal(DEIT_MIXED, many)
    assert compared == []
    refusal(DEIT_MIXED, few)
    assert len(compared) > 24


def test_a_file_that_may_be_of_two_models_is_refused_with_both_names() -> None:
    """Plain DeiT-III and the axial model with an absolute embedding have the same parameters."""
    text = refusal(DEIT_MIXED, hollow(find_model("rope_axial_ape_deit_small")))
    assert text.endswith(
        " Its parameters are those of deit_small_patch16_LS or rope_axial_ape_deit_small_patch16_LS, which differ in "
        "what leaves no trace in a file: only who trained it can say which it is."
    )
    assert "--model" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    broken = torch.zeros(384)
    broken[3:5] = value
    expected = "mine.pth: norm.weight holds 2 NaN or infinite values of 384; the checkpoint is broken"
    assert expected in refusal(DEIT_MIXED, hollow(DEIT_MIXED) | {"norm.weight": broken})


def test_integer_weights_are_refused_by_name() -> None:
    tensors = hollow(DEIT_MIXED) | {"norm.weight": torch.ones(384, dtype=torch.int64)}
    assert refusal(DEIT_MIXED, tensors) == ("mine.pth: norm.weight holds torch.int64, needs floating-point numbers.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_precision_become_float32(dtype: torch.dtype) -> None:
    given = torch.linspace(-1, 1, 384, dtype=dtype)
    found = adopt(DEIT_MIXED, checkpoint_of(hollow(DEIT_MIXED) | {"norm.weight": given})).tensors["norm.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, given.float())


def test_a_whole_half_precision_checkpoint_becomes_float32() -> None:
    tensors = {name: tensor.half() for name, tensor in hollow(DEIT_MIXED).items()}
    weights = adopt(DEIT_MIXED, checkpoint_of(tensors))
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("side", [7, 24])
def test_position_embeddings_of_another_square_grid_are_kept(side: int) -> None:
    plain = find_model("deit_small")
    table = torch.randn(1, side**2, 384)
    assert torch.equal(adopt(plain, checkpoint_of(hollow(plain) | {"pos_embed": table})).tensors["pos_embed"], table)


def with_tables(spec: ModelSpec, side: int, stages: str = "0123") -> Tensors:
    """The model with bias tables of other windows in some stages."""
    return {
        name: torch.randn((2 * side - 1) ** 2, each.shape[1]) if "bias_table" in name and name[7] in stages else each
        for name, each in hollow(spec).items()
    }


def test_bias_tables_of_another_window_are_kept_and_say_which_it_is() -> None:
    plain = find_model("swin_tiny")
    tensors = with_tables(plain, 12)
    found = adopt(plain, checkpoint_of(tensors))
    assert found.window == (12, 12)
    assert_same(found.tensors, tensors)


def test_bias_tables_of_two_windows_are_refused() -> None:
    plain = find_model("swin_tiny")
    assert "of windows of 7x7 and 12x12 tokens: needs one for all stages" in refusal(
        plain, with_tables(plain, 12, "01")
    )


def test_position_embeddings_that_count_the_class_token_are_refused() -> None:
    plain = find_model("deit_small")
    assert "wrong shape pos_embed (1, 197, 384), needs (1, 196, 384)" in (
        refusal(plain, hollow(plain) | {"pos_embed": torch.zeros(1, 197, 384)})
    )


def test_damage_in_the_middle_that_leaves_finite_numbers_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(5000)}, path)
    content = bytearray(path.read_bytes())
    content[content.find(b"\x00\x00\x80\x3f" * 100) + 8000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="its part .*data/0 is damaged"):
        file.read(path)


def test_a_sparse_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3).to_sparse()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"but weight \(torch\._utils\._rebuild_sparse_tensor\)"):
        file.read(tmp_path / "weights.pth")


def test_a_parameter_in_two_layouts_is_refused() -> None:
    spec = find_model("deit_small")
    tensors = dict(random_checkpoint(spec, 0).tensors)
    tensors["blocks.0.ls1.gamma"] = tensors["blocks.0.gamma_1"] * 2
    given = Checkpoint(dictionaries={"": tensors}, source="x.pth", revision=None, sha256="0" * 64, trained=True)
    with pytest.raises(CheckpointError, match="blocks.0.gamma_1 is there twice"):
        adopt(spec, given)
