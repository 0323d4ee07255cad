"""DINOv3's weights in every layout, against timm's own conversion and transformers' own model."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm
from timm.models import eva

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError
from ropevit_export.models.dinov3_layouts import Converted, timm_layout

Tensors = dict[str, torch.Tensor]

WIDTH, HEADS = 64, 2
GRIDS = ((64, 64), (48, 112))  # of pixels


def timms(*, gated: bool = False, biased: bool = True, registers: int = 4) -> eva.Eva:
    """A DINOv3 of two blocks."""
    return eva.Eva(
        patch_size=16, dynamic_img_size=True, embed_dim=WIDTH, depth=2, num_heads=HEADS, qkv_bias=biased,
        init_values=1e-5, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True,
        use_abs_pos_emb=False, num_reg_tokens=registers, use_fc_norm=False, norm_layer=partial(LayerNorm, eps=1e-5),
        num_classes=0, swiglu_mlp=gated, swiglu_align_to=8,
    ).eval()  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    """Values under which every parameter matters: none is zero, one, or the same for two channels."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            about_one = re.search(r"norm\d?\.weight$|gamma|lambda1", name)
            value.copy_(1 + 0.2 * drawn if about_one else 0.15 * drawn if value.ndim == 2 else 0.3 * drawn)


def random_tensors(**how: Any) -> Tensors:
    model = timms(**how)
    randomise(model)
    return dict(model.state_dict())


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def refusal(tensors: Mapping[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as raised:
        timm_layout(tensors)
    return str(raised.value)


# transformers


def transformers_model(*, gated: bool = False, biased: bool = True, key_bias: bool = False, registers: int = 4) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=timms(gated=gated).blocks[0].mlp.fc2.in_features,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        num_register_tokens=registers,
        query_bias=biased,
        value_bias=biased,
        key_bias=key_bias,
    )
    model = transformers.DINOv3ViTModel(config).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [False, True], ids=["GELU", "gated"])
def test_transformers_weights_compute_in_timm_what_they_compute_in_transformers(gated: bool, biased: bool) -> None:
    theirs, ours = transformers_model(gated=gated, biased=biased), timms(gated=gated, biased=biased)
    ours.load_state_dict(dict(timm_layout(theirs.state_dict()).tensors), strict=True)
    for size in GRIDS:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected, found = theirs(pixel_values=images).last_hidden_state, ours.forward_features(images)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) < 2e-5


@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_what_transformers_saves_is_what_it_holds_in_memory(tmp_path: Path, shard: str) -> None:
    model = transformers_model(gated=True)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    saved = file.read(tmp_path).tensors
    assert "layer.0.norm1.weight" in saved  # in the memory of newer versions model.layer.0.norm1.weight
    assert_same(timm_layout(saved).tensors, timm_layout(model.state_dict()).tensors)


def test_transformers_mask_token_is_dropped() -> None:
    found = timm_layout(transformers_model().state_dict())
    assert (found.layout, found.periods) == ("transformers", None)
    assert found.dropped == ("embeddings.mask_token",)


def test_a_transformers_model_without_registers_has_no_register_tokens() -> None:
    found = timm_layout(transformers_model(registers=0).state_dict())
    timms(registers=0).load_state_dict(dict(found.tensors), strict=True)
    assert found.dropped == ("embeddings.mask_token", "embeddings.register_tokens")


def transformers_tensors() -> Tensors:
    """Part of a file, without the library."""
    return {
        "embeddings.cls_token": torch.ones(1, 1, 4),
        **{f"layer.0.attention.{each}_proj.weight": torch.full((4, 4), i) for i, each in enumerate("kqv")},
    }


def test_periods_are_one_over_the_inverse_frequencies_that_a_file_holds() -> None:
    found = timm_layout(transformers_tensors() | {"rope_embeddings.inv_freq": torch.tensor([1.0, 0.25])})
    assert found.periods is not None
    assert found.periods.tolist() == [1.0, 4.0]
    assert found.dropped == ("rope_embeddings.inv_freq",)


@pytest.mark.parametrize("prefix", ["layer.0.", "model.layer.0."])
def test_a_key_bias_of_transformers_is_dropped_where_it_is_zero_and_refused_where_it_is_not(prefix: str) -> None:
    name = f"{prefix}attention.k_proj.bias"
    bias = torch.zeros(4)
    assert timm_layout(transformers_tensors() | {name: bias}).dropped == (name,)
    bias[3] = -0.5
    assert refusal(transformers_tensors() | {name: bias}) == (
        f"{name} gives keys a bias of up to 0.5, which a DINOv3 does not have: needs zeros, "
        "take a checkpoint that was trained without key biases."
    )


def test_queries_keys_and_values_are_one_matrix_in_that_order() -> None:
    fused = timm_layout(transformers_tensors()).tensors["blocks.0.attn.qkv.weight"]
    assert fused[:, 0].tolist() == [1.0] * 4 + [0.0] * 4 + [2.0] * 4


def test_projections_that_are_not_all_there_keep_their_names() -> None:
    tensors = transformers_tensors()
    del tensors["layer.0.attention.k_proj.weight"]
    assert set(timm_layout(tensors).tensors) == {
        "cls_token", "layer.0.attention.q_proj.weight", "layer.0.attention.v_proj.weight",
    }  # fmt: skip


def test_projections_of_different_shapes_are_refused() -> None:
    tensors = transformers_tensors() | {"layer.0.attention.v_proj.weight": torch.zeros(4, 5)}
    assert "v_proj.weight have the shapes [(4, 4), (4, 5)], need one and the same." in refusal(tensors)


# Meta


def metas(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """timm's tensors as Meta's code would save them: keys have a bias too, which the mask takes away."""
    swaps = [("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")]
    if "blocks.0.mlp.fc1_g.weight" in tensors:
        swaps += [("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")]
    out: Tensors = {}
    for name, tensor in tensors.items():
        for timms_part, metas_part in swaps:
            name = name.replace(timms_part, metas_part)
        out[name] = tensor
    for q_name in [name for name in out if name.endswith(".q_bias")]:
        block = q_name.removesuffix("q_bias")
        out[f"{block}qkv.bias"] = torch.cat([out.pop(q_name), torch.full((WIDTH,), 7.0), out.pop(f"{block}v_bias")])
        out[f"{block}qkv.bias_mask"] = mask()
    return out


def mask(q: float = 1.0, k: float = 0.0, v: float = 1.0) -> torch.Tensor:
    return torch.tensor([q, k, v]).repeat_interleave(WIDTH)


def by_timm(tensors: Tensors, model: eva.Eva) -> Tensors:
    """timm prints what it drops."""
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(eva.checkpoint_filter_fn(dict(tensors), model))


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [False, True], ids=["GELU", "gated"])
def test_metas_layout_becomes_what_timm_makes_of_it(gated: bool, biased: bool) -> None:
    tensors = random_tensors(gated=gated, biased=biased)
    found = timm_layout(metas(tensors))
    assert found.layout == "Meta"
    assert metas(tensors).keys() != tensors.keys()
    assert_same(found.tensors, by_timm(metas(tensors), timms(gated=gated, biased=biased)))
    assert_same(found.tensors, tensors)


def test_biases_go_through_their_mask() -> None:
    tensors = metas(random_tensors())
    bias = tensors["blocks.1.attn.qkv.bias"]
    tensors["blocks.1.attn.qkv.bias_mask"] = mask(q=0.5, v=0.0)
    found = timm_layout(tensors).tensors
    assert torch.equal(found["blocks.1.attn.q_bias"], bias[:WIDTH] / 2)
    assert torch.equal(found["blocks.1.attn.v_bias"], torch.zeros(WIDTH))


def test_biases_that_are_all_zero_are_kept() -> None:
    tensors = metas(random_tensors())
    tensors |= {name: torch.zeros(3 * WIDTH) for name in tensors if ".qkv.bias" in name}
    assert not timm_layout(tensors).tensors["blocks.0.attn.q_bias"].any()


def test_a_mask_keeps_the_type_of_its_bias() -> None:
    tensors = metas(random_tensors())
    tensors["blocks.0.attn.qkv.bias"] = tensors["blocks.0.attn.qkv.bias"].bfloat16()
    assert timm_layout(tensors).tensors["blocks.0.attn.q_bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("k", [0.0, float("nan")])
def test_a_mask_takes_the_bias_of_keys_away(k: float) -> None:
    tensors = metas(random_tensors()) | {"blocks.0.attn.qkv.bias_mask": mask(k=k)}
    assert_same(timm_layout(tensors).tensors, random_tensors())


@pytest.mark.parametrize("masked", [True, False], ids=["a mask of ones", "no mask"])
def test_a_key_bias_that_counts_is_refused(masked: bool) -> None:
    tensors = metas(random_tensors()) | {"blocks.1.attn.qkv.bias_mask": mask(k=1.0)}
    if not masked:
        del tensors["blocks.1.attn.qkv.bias_mask"]
    assert refusal(tensors) == (
        "blocks.1.attn.qkv.bias gives keys a bias of up to 7, which a DINOv3 does not have: needs zeros, "
        "take a checkpoint that was trained without key biases."
    )


@pytest.mark.parametrize("part", ["q", "v"])
def test_a_mask_that_was_never_filled_in_is_refused(part: str) -> None:
    tensors = metas(random_tensors()) | {"blocks.0.attn.qkv.bias_mask": mask(**{part: float("nan")})}
    assert refusal(tensors) == (
        "blocks.0.attn.qkv.bias_mask holds NaN for queries or values, needs 0 and 1: it was never filled in."
    )


@pytest.mark.parametrize("length", [3 * WIDTH + 1, 3 * WIDTH - 3])
def test_a_bias_that_does_not_fit_its_mask_is_refused(length: int) -> None:
    tensors = metas(random_tensors()) | {"blocks.0.attn.qkv.bias": torch.zeros(length)}
    assert refusal(tensors) == (f"blocks.0.attn.qkv.bias ({length},), its mask (192,): needs (3 * width,) of both.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_metas_rounded_periods_are_handed_on(dtype: torch.dtype) -> None:
    periods = (100.0 ** (torch.arange(8) / 8)).bfloat16().to(dtype)
    found = timm_layout(metas(random_tensors(biased=False)) | {"rope_embed.periods": periods})
    assert found.periods is periods
    assert found.dropped == ("rope_embed.periods",)


def test_what_pretraining_leaves_in_metas_files_is_dropped_by_name() -> None:
    extra = {
        name: torch.ones(1, WIDTH)
        for name in ("mask_token", "local_cls_norm.weight", "local_cls_norm.bias", "projectors.dino.0.weight")
    }
    found = timm_layout(extra | metas(random_tensors()))
    masks = tuple(f"blocks.{block}.attn.qkv.bias_mask" for block in range(2))
    assert found.dropped == (*extra, *masks)
    assert_same(found.tensors, random_tensors())


# timm, and what belongs to no layout


@pytest.mark.parametrize("gated", [False, True], ids=["GELU", "gated"])
def test_timms_layout_stays_as_it_is(gated: bool) -> None:
    tensors = random_tensors(gated=gated)
    buffers = {"rope.periods": torch.ones(8), "rope.pos_embed": torch.ones(4, 64)}
    found = timm_layout(tensors | buffers)
    assert (found.layout, found.dropped, found.periods) == ("timm", tuple(buffers), buffers["rope.periods"])
    assert_same(found.tensors, tensors)


def test_names_that_no_layout_has_are_kept() -> None:
    odd = {
        "head.weight": torch.ones(3, WIDTH),
        "cls_norm.weight": torch.ones(WIDTH),
        "blocks.0.attn.k_norm.weight": torch.ones(32),
        "layer.0.attention.k_norm.weight": torch.ones(32),
        "model.layer.0.mlp.extra.bias": torch.ones(4),
    }
    for tensors in (random_tensors(), metas(random_tensors()), transformers_tensors()):
        found = timm_layout(odd | tensors)
        assert_same(found.tensors, odd | dict(timm_layout(tensors).tensors))
        assert not set(found.dropped) & odd.keys()


def test_a_file_that_holds_a_parameter_in_two_layouts_is_refused() -> None:
    tensors = metas(random_tensors()) | {"reg_token": torch.zeros(1, 4, WIDTH)}
    assert refusal(tensors) == "reg_token is there twice: the file mixes two layouts, keep one."


def test_conversion_is_of_names_alone() -> None:
    """No copy where a name changes: a 7B model is 27 GB."""
    tensors = metas(random_tensors())
    found: Converted = timm_layout(tensors)
    assert found.tensors["reg_token"] is tensors["storage_tokens"]
