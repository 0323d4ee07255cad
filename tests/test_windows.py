"""Swin's windows: read from a file, asked for, or by the authors' rule; against timm's Swin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError, UsageError
from ropevit_export.models import filed, reference
from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Resolution
from tests.conftest import outputs_of
from tests.tiny import answer, assert_same_answers, images, loaded, ours, randomised, request

SMALL: dict[str, Any] = {"dims": (24, 48, 96, 192), "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}
PLAIN = dataclasses.replace(find_model("swin_tiny"), **SMALL)
MIXED = dataclasses.replace(find_model("swin_rope_mixed_tiny"), **SMALL)
SIZE = Resolution(height=128, width=128)  # last map 4x4


def timms(size: tuple[int, int] = (128, 128), **how: Any) -> Any:
    given = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "num_classes": 5}
    return randomised(timm.create_model("swin_tiny_patch4_window7_224", img_size=size, **given, **how))


def saved(path: Path, model: Any) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_window_is_what_the_files_bias_tables_say(tmp_path: Path, window: int) -> None:
    model = timms(window_size=window)
    path = saved(tmp_path / "x.pth", model)
    assert_same_answers(ours(path, request(PLAIN, size=SIZE)), answer(model, SIZE))
    spec, weights = loaded(path, request(PLAIN, size=SIZE))
    assert spec.window(SIZE) == (window, window)
    rule = f"windows are {window}x{window} tokens at 128, the authors' rule gives 4x4: --window chooses"
    assert weights.choices == (() if window == 4 else (rule,))


def test_tokens_of_several_windows_are_in_the_maps_order(tmp_path: Path) -> None:
    model = timms(window_size=2)
    path = saved(tmp_path / "x.pth", model)
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(images(SIZE))).flatten(1, 2).numpy()
    assert_same_answers(ours(path, request(PLAIN, output="tokens", size=SIZE)), tokens)


def test_a_window_of_two_sides(tmp_path: Path) -> None:
    size = Resolution(height=64, width=128)
    model = timms((64, 128), window_size=(2, 4))
    path = saved(tmp_path / "x.pth", model)
    assert_same_answers(ours(path, request(PLAIN, size=size)), answer(model, size))
    assert loaded(path, request(PLAIN, size=size))[1].window == (2, 4)


def test_where_the_files_window_does_not_fit_the_authors_rule_is_taken_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", timms(window_size=4))
    size = Resolution(height=96, width=96)
    spec, weights = loaded(path, request(PLAIN, size=size))
    assert spec.window(size) == (3, 3)
    assert weights.choices == ("windows are 3x3 tokens at 96, bias tables resized from 4x4",)


def test_published_weights_follow_the_authors_rule_at_every_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", timms(window_size=2))
    given = filed.Given(key=None, sizes=(SIZE,), published=True)
    spec, _ = filed.read(PLAIN, file.read(path), given)
    assert spec.window(SIZE) == (4, 4)


def rotary(window: tuple[int, int]) -> Any:
    """RoPE-Swin's reference with other windows than the rule's."""
    from ropevit_export.models.adopt import adopt
    from ropevit_export.models.initial import random_checkpoint

    spec = dataclasses.replace(MIXED, own_window=window)
    weights = adopt(spec, random_checkpoint(spec, 0))
    return weights, reference.build(spec, weights, SIZE, outputs_of(spec, "logits"))


def test_a_rotary_swin_says_nothing_of_its_windows_but_by_what_is_asked(tmp_path: Path) -> None:
    for window in ((4, 4), (2, 2)):
        weights, model = rotary(window)
        torch.save({"model": dict(weights.tensors)}, tmp_path / "x.pth")
        spec = dataclasses.replace(MIXED, own_window=window)
        asked = Request(model=spec, resolutions=(SIZE,), output="logits", window=window)
        assert_same_answers(ours(tmp_path / "x.pth", asked), answer(model, SIZE))
    assert loaded(tmp_path / "x.pth", request(MIXED, size=SIZE))[1].choices[-1] == (
        "windows are 4x4 tokens at 128, size // 32, which the file can't say: --window chooses"
    )


def test_a_rotary_swins_masks_tell_windows_that_are_not_the_rules(tmp_path: Path) -> None:
    weights, model = rotary((2, 2))
    mask = model.model.layers[0].blocks[1].attn_mask
    assert mask.shape == (256, 4, 4)
    torch.save({"model": {**weights.tensors, "layers.0.blocks.1.attn_mask": mask}}, tmp_path / "x.pth")
    assert_same_answers(ours(tmp_path / "x.pth", request(MIXED, size=SIZE)), answer(model, SIZE))
    by_rule = rotary((4, 4))[1].model.layers[0].blocks[1].attn_mask
    torch.save({"model": {**weights.tensors, "layers.0.blocks.1.attn_mask": by_rule}}, tmp_path / "x.pth")
    assert loaded(tmp_path / "x.pth", request(MIXED, size=SIZE))[0].window(SIZE) == (4, 4)


def test_windows_are_for_swin_and_divide_the_last_map() -> None:
    with pytest.raises(UsageError, match=r"--window 3x3 does not divide the last map at 128, 4x4 tokens"):
        Request(model=PLAIN, resolutions=(SIZE,), window=(3, 3))
    with pytest.raises(UsageError, match="--window is for Swin"):
        Request(model=find_model("deit_small"), resolutions=(SIZE,), window=(2, 2))


def test_a_table_that_is_of_no_window_is_refused(tmp_path: Path) -> None:
    tensors = timms(window_size=4).state_dict()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    tensors[name] = torch.zeros(48, 1)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"wrong shape {name} \(48, 1\), needs \(169, 1\)"):
        loaded(tmp_path / "x.pth", request(PLAIN, size=SIZE))
