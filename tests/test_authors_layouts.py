"""Weights as their authors publish them: names written out here, numbers must arrive unchanged."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ropevit_export.errors import CheckpointError
from ropevit_export.models.adopt import adopt
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.values import Checkpoint, Resolution
from tests.tiny import assert_same_answers, images, ours, randomised, request

Tensors = dict[str, torch.Tensor]
BAAI = {
    "patch_embed.proj": "patch_embed.proj", "attn.norm": "attn.inner_attn_ln", "mlp.norm": "mlp.ffn_ln",
    "q_proj.bias": "q_bias", "v_proj.bias": "v_bias", "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3",
}  # fmt: skip
BAAI_PACKED = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
META_PE = {
    "patch_embed.proj": "conv1", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "norm_pre": "ln_pre", "norm1": "ln_1", "norm2": "ln_2",
    "blocks.": "transformer.resblocks.",
}  # fmt: skip
SAPIENS2 = {
    "reg_token": "storage_tokens", "patch_embed.proj": "patch_embed.projection", "attn.q_proj": "attn.wq",
    "attn.k_proj": "attn.wk", "attn.v_proj": "attn.wv", "gamma_1": "attn.gamma.weight", "mlp.fc1": "ffn.w12",
    "mlp.fc2": "ffn.w3", "norm1": "ln1", "norm2": "ln2",
}  # fmt: skip


def two_blocks(model: str) -> ModelSpec:
    spec = find_model(model)
    return dataclasses.replace(spec, depths=(2,), kv_heads=None)


def seeded(model: str) -> Tensors:
    tensors = dict(random_checkpoint(two_blocks(model), seed=0).tensors)
    return {name: tensor for name, tensor in tensors.items() if name != "head.bias" or "pe_" not in model}


def renamed(tensors: Tensors, names: dict[str, str], prefix: str = "") -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        theirs = name
        for timms, authors in names.items():
            theirs = theirs.replace(timms, authors)
        out[prefix + theirs] = tensor
    return out


def baai(model: str, prefix: str = "") -> Tensors:
    names = BAAI_PACKED if "tiny" in model else BAAI
    text = {"text.positional_embedding": torch.zeros(77, 8), "logit_scale": torch.zeros(())} if prefix else {}
    return renamed(seeded(model), names, prefix) | text | {f"{prefix}rope.freqs_cos": torch.zeros(256, 64)}


def perception(model: str, prefix: str = "visual.") -> Tensors:
    """Attention pooling has one matrix for query, keys and values; the head has no bias, and is transposed."""
    out = {}
    for name, tensor in seeded(model).items():
        if name.startswith("attn_pool."):
            theirs = re.sub("mlp.fc1", "mlp.c_fc", re.sub("mlp.fc2", "mlp.c_proj", name))
            theirs = theirs.replace("latent", "probe").replace("attn_pool.norm", "attn_pool.layernorm")
            theirs = theirs.replace("attn_pool.proj", "attn_pool.attn.out_proj")
            out[theirs] = tensor
        elif name.startswith("norm."):
            out[name.replace("norm.", "ln_post.")] = tensor
        elif name == "cls_token":
            out["class_embedding"] = tensor[0, 0]
        elif name == "pos_embed":
            out["positional_embedding"] = tensor[0]
        elif name == "head.weight":
            out["proj"] = tensor.T
        else:
            out |= renamed({name: tensor}, META_PE)
    for kind in ("weight", "bias"):
        q, kv = out.pop(f"attn_pool.q.{kind}"), out.pop(f"attn_pool.kv.{kind}")
        out[f"attn_pool.attn.in_proj_{kind}"] = torch.cat([q, kv])
    return {prefix + name: tensor for name, tensor in out.items()}


def sapiens2(model: str) -> Tensors:
    out = renamed(seeded(model), SAPIENS2)
    out["ln1.weight"] = out.pop("norm.weight")
    return out | {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 1, 768)}


@pytest.mark.parametrize(
    ("model", "author", "made"),
    [
        ("eva02_tiny_336", "BAAI", baai),
        ("eva02_base_clip_224", "BAAI", functools.partial(baai, prefix="visual.")),
        ("pe_core_small", "perception_models", perception),
        ("sapiens2_base", "Sapiens2", sapiens2),
    ],
)
def test_every_number_arrives_under_its_name(model: str, author: str, made: Callable[[str], Tensors]) -> None:
    spec = two_blocks(model)
    given = Checkpoint(dictionaries={"": made(model)}, source="file", revision=None, sha256="", trained=True)
    found = adopt(spec, given)
    wanted = seeded(model)
    assert found.tensors.keys() == FAMILIES[spec.family].shapes(spec, spec.classes).keys()
    for name, tensor in wanted.items():
        assert torch.equal(found.tensors[name], tensor), name
    assert f"the file is in the layout of {author}" in found.choices


def test_sapiens2_as_transformers_has_it_is_transformers_model(tmp_path: Path) -> None:
    """The names of a module in memory, and the authors', under which `save_pretrained` writes; fewer heads of keys."""
    from transformers import Sapiens2Config, Sapiens2Model

    config = Sapiens2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_register_tokens=8,
        use_gated_mlp=True, num_key_value_heads_per_layer=[2, 1], image_size=32,
    )  # fmt: skip
    theirs = randomised(Sapiens2Model(config))
    base = find_model("sapiens2_base")
    spec = dataclasses.replace(base, depths=(2,), dims=(64,), heads=(2,), kv_heads=(2, 1), hidden=96)
    size = Resolution(height=48, width=32)
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(images(size))).last_hidden_state.numpy()
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    theirs.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "memory.pth", tmp_path / "saved"):
        assert_same_answers(ours(path, request(spec, output="tokens", size=size)), wanted)


def test_a_pretraining_files_final_norm_is_that_of_the_pooled_feature() -> None:
    """As timm has it; the mask token and the head over visual words are of pre-training."""
    spec, tensors = two_blocks("eva02_tiny_224"), seeded("eva02_tiny_224")
    theirs = renamed(tensors, BAAI_PACKED)
    for kind in ("weight", "bias"):
        theirs[f"norm.{kind}"] = theirs.pop(f"fc_norm.{kind}")
        theirs[f"lm_head.{kind}"] = torch.zeros(9, 192) if kind == "weight" else torch.zeros(9)
    theirs["mask_token"] = torch.zeros(1, 1, 192)
    given = Checkpoint(dictionaries={"": theirs}, source="file", revision=None, sha256="", trained=True)
    found = adopt(spec, given).tensors
    assert torch.equal(found["fc_norm.weight"], tensors["fc_norm.weight"])


def test_a_tensor_too_many_is_named() -> None:
    tensors = sapiens2("sapiens2_base") | {"extra.weight": torch.zeros(3)}
    given = Checkpoint(dictionaries={"": tensors}, source="file", revision=None, sha256="", trained=True)
    with pytest.raises(CheckpointError, match=r"unexpected extra\.weight"):
        adopt(two_blocks("sapiens2_base"), given)
