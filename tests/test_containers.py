"""Files as training leaves them, written by the libraries that write them where they are installed: what of them is
taken, and that it computes what timm's model with the same parameters does.

One line of docs/checkpoints.md, one test.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from timm.utils.checkpoint_saver import CheckpointSaver
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError
from ropevit_export.values import Resolution
from tests import tiny
from tests.tiny import TINY_APE, Tensors, answer, assert_same_answers, loaded, ours, request, state, timms


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another take longer than these models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(path: Path, content: object, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def refusal(path: Path, **how: Any) -> str:
    with pytest.raises(CheckpointError) as raised:
        loaded(path, request(**how))
    return str(raised.value)


def choices(path: Path, **how: Any) -> tuple[str, ...]:
    return loaded(path, request(**how))[1].choices


def test_the_comparison_sees_one_wrong_parameter(tmp_path: Path) -> None:
    theirs = answer(timms())
    for name, tensor in state().items():
        if name.startswith("blocks.1."):
            continue
        wrong = state() | {name: tensor.roll(1, -1)}
        found = ours(saved(tmp_path / "x.pth", wrong))
        with pytest.raises(AssertionError):
            assert_same_answers(found, theirs)


# Trainers


def test_timms_saver_with_averaged_weights(tmp_path: Path) -> None:
    """timm loads the averaged ones."""
    model = timms()
    averaged = ModelEmaV3(model, decay=0.5)
    tiny.randomised(averaged.module, seed=1)
    args = argparse.Namespace(model="vit_small_patch16_rope_mixed_224", lr=1e-4, out=Path("x"))
    saver = CheckpointSaver(model, torch.optim.AdamW(model.parameters()), args=args, model_ema=averaged,
                            checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))  # fmt: skip
    saver.save_checkpoint(3, metric=np.float64(0.9))
    path = tmp_path / "model_best.pth.tar"
    assert_same_answers(ours(path), answer(timms(1)))
    said = "weights are the file's state_dict_ema (averaged), not state_dict: --weights-key chooses"
    assert choices(path) == (said,)
    raw = request(weights="x", weights_key="state_dict")
    assert_same_answers(ours(path, raw), answer(timms()))
    assert loaded(path, raw)[1].choices == ("weights are the file's state_dict",)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 1e-4, "root": Path("data")})
            self.model = timms()
            self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(5))

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            loss: torch.Tensor = self.criterion(self.model(batch[0]), batch[0].new_zeros(len(batch[0])).long())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2, 3, 32, 32)))
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert_same_answers(ours(tmp_path / "last.ckpt"), answer(module.model.eval()))
    assert choices(tmp_path / "last.ckpt") == (
        "weights are the file's state_dict.model",
        "left out of the file, no part of the model: criterion.weight",
    )


def lightnings() -> dict[str, object]:
    """The layout of a Lightning checkpoint, without the library."""
    weights = {f"model.{name}": each for name, each in state().items()} | {"criterion.weight": torch.ones(5)}
    return {"epoch": 4, "global_step": 100, "pytorch-lightning_version": "2.5.0", "loops": {}, "callbacks": {},
            "state_dict": weights, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {}}  # fmt: skip


def test_lightnings_layout(tmp_path: Path) -> None:
    assert_same_answers(ours(saved(tmp_path / "x.ckpt", lightnings())), answer(timms()))


def test_lightnings_averaged_weights_are_its_state_dict(tmp_path: Path) -> None:
    """Lightning's WeightAveraging swaps them when it saves, and keeps the raw ones beside."""
    raw = {f"model.{name}": each for name, each in state(1).items()}
    path = saved(tmp_path / "x.ckpt", lightnings() | {"current_model_state": raw, "averaging_state": {"n": 1}})
    assert_same_answers(ours(path), answer(timms()))
    assert (
        choices(path)[0]
        == "weights are the file's state_dict.model, not current_model_state.model: --weights-key chooses"
    )


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("state_dict_ema", "model_ema"),  # and so on, as timm does
        ("model_ema", "state_dict"),
        ("model_ema", "model"),
        ("state_dict", "model"),
        ("state_dict", "ema_state_dict"),  # mmengine swaps them when it saves
        ("teacher", "student"),  # what DINO's evaluation reads
        ("ema.module", "model"),
        ("swa_state_dict", "model_state_dict"),
    ],
)
def test_of_two_dictionaries_the_one_that_their_writer_would_load(tmp_path: Path, first: str, other: str) -> None:
    def nested(place: str, tensors: Tensors) -> dict[str, object]:
        top, _, inner = place.partition(".")
        return {top: {inner: tensors} if inner else tensors}

    for order in (1, -1):
        parts = [nested(first, state(0)), nested(other, state(1))][::order]
        path = saved(tmp_path / "x.pth", {**parts[0], **parts[1], "epoch": 3})
        assert_same_answers(ours(path), answer(timms(0)))
        assert choices(path)[0].endswith(f", not {other}: --weights-key chooses")
        assert_same_answers(ours(path, request(weights="x", weights_key=other)), answer(timms(1)))


@pytest.mark.parametrize("names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("state_dict", "model"),
                                   ("model_ema", "state_dict"), ("model", "state_dict_ema", "model_ema")])  # fmt: skip
def test_of_timms_names_the_one_that_timm_loads(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = saved(tmp_path / "x.pth", {name: state(at) for at, name in enumerate(names)})
    theirs = timms(9)
    timm.models.load_checkpoint(theirs, str(path), use_ema=True)
    assert_same_answers(ours(path), answer(theirs))


def test_averages_without_names_are_left_out_and_said(tmp_path: Path) -> None:
    """As torch_ema's `state_dict()` has them, beside the model and alone."""
    average: dict[str, Any] = {
        "decay": 0.999,
        "num_updates": 7,
        "shadow_params": list(timms(1).parameters()),
        "collected_params": None,
    }
    path = saved(tmp_path / "x.pth", {"model": state(0), "ema": average})
    assert_same_answers(ours(path), answer(timms(0)))
    count = len(average["shadow_params"])
    assert (
        f"left out: ema.shadow_params, a list without names, of {count} tensors; to export averaged weights, copy them "
        "into the model where it was trained and save its state_dict" in choices(path)
    )
    text = refusal(saved(tmp_path / "y.pth", {"ema": average}))
    assert f"holds no dictionary of tensors, but ema.shadow_params (a list without names, of {count} tensors)" in text


def test_adapters_alone_are_refused(tmp_path: Path) -> None:
    """As PEFT saves them: a folder with a configuration and the adapters."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["qkv"]}')
    names = [f"base_model.model.blocks.{at}.attn.qkv.lora_{kind}.weight" for at in (0, 1) for kind in "AB"]
    save_file({name: torch.zeros(4, 48) for name in names}, folder / "adapter_model.safetensors")
    for path in (folder, folder / "adapter_model.safetensors"):
        assert "It holds LoRA adapters: merge them first, with model.merge_and_unload(), and save that." in refusal(
            path
        )


def test_tar_archives_are_refused_in_a_sentence_of_their_own(tmp_path: Path) -> None:
    """PyTorch's first format, and a checkpoint that was packed: both are called .tar."""
    saved(tmp_path / "weights.pth", state(0))
    with tarfile.open(tmp_path / "packed.pth.tar", "w") as archive:
        archive.add(tmp_path / "weights.pth", "weights.pth")
    with tarfile.open(tmp_path / "first.pth.tar", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
            archive.add(tmp_path / name, name)
    for name in ("packed", "first"):
        text = refusal(tmp_path / f"{name}.pth.tar")
        assert "is a tar archive: unpack it and give the file in it; one that PyTorch wrote before 0.2" in text


def test_bfloat16_takes_the_memory_of_the_parameters(tmp_path: Path) -> None:
    """In a process of its own, of which the kernel says the most that it held: 1.2 times float32's parameters."""
    rows, width, count = 1024, 1024, 32  # 128 MB
    tensors = {f"blocks.{at}.weight": torch.randn(rows, width).bfloat16() for at in range(count)}
    names = {name: f"model-{at // 8 + 1:05}-of-00004.safetensors" for at, name in enumerate(tensors)}
    for part in sorted(set(names.values())):
        save_file({name: tensors[name] for name in tensors if names[name] == part}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    save_file(tensors, tmp_path / "whole.safetensors")
    save_file({"small": torch.ones(4, 4).bfloat16()}, tmp_path / "small.safetensors")
    code = """
import os, sys, pathlib, torch
from ropevit_export.checkpoint import file
from ropevit_export.models import adopt

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]) / 1024

def read(path):
    (tensors,) = file.read(pathlib.Path(path)).dictionaries.values()
    return {name: adopt._float32("x", name, each) for name, each in tensors.items()}

torch.set_num_threads(1)
read(sys.argv[1])  # loads what is needed
for path in sys.argv[1:]:
    if not os.fork():
        open("/proc/self/clear_refs", "w").write("5")  # the most that it held is what it holds
        before = held()
        kept = read(path)
        print(held() - before, sum(each.nbytes for each in kept.values()) / 2**20, flush=True)
        os._exit(0)
    os.wait()
"""
    paths = [str(tmp_path / name) for name in ("small.safetensors", "", "whole.safetensors")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    (least, _), *found = (map(float, line.split()) for line in done.stdout.splitlines())
    for grown, parameters in found:
        assert parameters == count * 4
        assert 0.8 * parameters <= grown - least <= 1.2 * parameters, done.stdout


def test_of_two_dictionaries_that_nothing_tells_apart_neither_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"fold_1": state(0), "fold_2": state(1)})
    assert refusal(path) == "x.pth has several dictionaries that fit: fold_1, fold_2. Choose with --weights-key."
    assert_same_answers(ours(path, request(weights="x", weights_key="fold_2")), answer(timms(1)))
    assert refusal(path, weights="x", weights_key="fold_3") == (
        "x.pth has no model under fold_3: --weights-key takes fold_1, fold_2."
    )


def test_one_dictionary_under_two_names_is_one(tmp_path: Path) -> None:
    both = state()
    assert_same_answers(ours(saved(tmp_path / "x.pth", {"a": both, "b": dict(both)})), answer(timms()))


def test_dinos_student_and_teacher(tmp_path: Path) -> None:
    head = {"head.mlp.0.weight": torch.zeros(8, 48), "head.mlp.0.bias": torch.zeros(8)}
    student = {f"module.backbone.{name}": each for name, each in state(1, num_classes=0).items()}
    teacher = {f"backbone.{name}": each for name, each in state(0, num_classes=0).items()}
    path = saved(tmp_path / "x.pth", {"student": student | head, "teacher": teacher | head, "optimizer": {}, "epoch": 9,
                                      "args": argparse.Namespace(arch="x")})  # fmt: skip
    asked = request(output="cls")
    assert_same_answers(ours(path, asked), answer(timms(0, num_classes=0)))
    assert loaded(path, asked)[1].choices == (
        "weights are the file's teacher.backbone, not student.backbone: --weights-key chooses",
        "left out of the file, no part of the model: head.mlp.0.bias, head.mlp.0.weight",
    )


@pytest.mark.parametrize(
    "place",
    ["model", "state_dict", "model_state_dict", "module", "net", "weights", "params", "network.generator.weights"],
)
def test_any_nesting(tmp_path: Path, place: str) -> None:
    content: object = state()
    for word in reversed(place.split(".")):
        content = {word: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    path = saved(tmp_path / "x.pth", content)
    assert_same_answers(ours(path), answer(timms()))
    assert choices(path) == (f"weights are the file's {place}",)


def test_a_dictionary_a_module(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    for name, tensor in state().items():
        *modules, leaf = name.split(".")
        place = nested
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = tensor
    assert_same_answers(ours(saved(tmp_path / "x.pth", {"params": nested, "step": 3})), answer(timms()))


# Wrappers


class Net(torch.nn.Module):
    """A user's own module around timm's."""

    def __init__(self, head: str, **how: Any) -> None:
        super().__init__()
        self.backbone = timms(num_classes=0, **how)
        self.add_module(head, torch.nn.Linear(48, 7))
        self.head_name = head
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = getattr(self, self.head_name)(self.backbone(x))
        return out


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """`torch.compile` as it is called with a module: it says that it gives a function."""
    made: Any = torch.compile(model)
    assert isinstance(made, torch.nn.Module)
    return made


def compiled_whole() -> torch.nn.Module:
    return compiled(timms())


def compiled_by_block() -> torch.nn.Module:
    model = timms()
    for at, block in enumerate(model.blocks):
        model.blocks[at] = torch.compile(block) if at else block
    return model  # type: ignore[no-any-return]


def checkpointed() -> torch.nn.Module:
    model = timms()
    for at, block in enumerate(model.blocks):
        model.blocks[at] = checkpoint_wrapper(block)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [compiled_whole, compiled_by_block, checkpointed, lambda: AveragedModel(timms()),
                                  lambda: AveragedModel(compiled(timms()))])  # fmt: skip
def test_the_state_of_a_wrapped_model(tmp_path: Path, make: Callable[[], torch.nn.Module]) -> None:
    path = saved(tmp_path / "x.pth", make().state_dict())
    assert_same_answers(ours(path), answer(timms()))


@pytest.fixture
def process_group() -> Iterator[None]:
    store: Any = vars(torch.distributed)["HashStore"]()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path, process_group: None) -> None:
    model = torch.nn.parallel.DistributedDataParallel(timms())
    assert_same_answers(ours(saved(tmp_path / "x.pth", model.state_dict())), answer(timms()))


def test_a_sharded_models_state_is_refused_until_it_is_whole(tmp_path: Path, process_group: None) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = timms()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    text = refusal(saved(tmp_path / "parts.pth", model.state_dict()))
    assert "DTensor" in text or "_rebuild_wrapper_subclass" in text
    assert "state_dict()" in text
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert_same_answers(ours(saved(tmp_path / "x.pth", whole)), answer(timms()))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "timm_model.", "net.", "_fsdp_wrapped_module.",
     "module._orig_mod.model.backbone.", "student_network.trunk."],
)  # fmt: skip
def test_any_prefix(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "x.pth", {prefix + name: each for name, each in state().items()})
    assert_same_answers(ours(path), answer(timms()))


def test_prefixes_that_stand_before_parts_of_the_network(tmp_path: Path) -> None:
    mixed = {
        (
            f"module.encoder.{name}" if name.startswith("blocks.0") else f"backbone.{name}" if "norm" in name else name
        ): each
        for name, each in state().items()
    }
    path = saved(tmp_path / "x.pth", mixed)
    assert_same_answers(ours(path), answer(timms()))
    assert choices(path) == (
        "names are read without model, backbone and the like, which stand before some of them only",
    )


def test_names_of_wrappers_that_would_become_one_are_left_as_they_are(tmp_path: Path) -> None:
    both = state() | {f"module.{name}": each + 1 for name, each in state().items()}
    path = saved(tmp_path / "x.pth", both)
    assert refusal(path).startswith("x.pth has several dictionaries that fit: the file itself, module.")


@pytest.mark.parametrize("head", ["head", "classifier", "fc"])
def test_a_head_beside_the_backbone(tmp_path: Path, head: str) -> None:
    net = Net(head)
    path = saved(tmp_path / "x.pth", net.state_dict())
    assert_same_answers(ours(path), answer(net))
    assert f"the head is the file's {head}.weight, 7 classes, fed the pooled feature as the model's own is" in choices(
        path
    )
    parts = {"backbone": net.backbone.state_dict(), head: getattr(net, head).state_dict()}
    assert_same_answers(ours(saved(tmp_path / "parts.pth", {"nets": parts})), answer(net))


def test_a_head_of_another_width_beside_the_backbone_is_none(tmp_path: Path) -> None:
    tensors = Net("classifier").state_dict() | {"classifier.weight": torch.zeros(7, 96)}
    path = saved(tmp_path / "x.pth", tensors)
    assert loaded(path)[1].classes == 0
    assert "left out of the file, no part of the model: classifier.bias, classifier.weight" in choices(path)


# What a model doesn't use


def test_counters_and_losses_under_the_networks_own_names(tmp_path: Path) -> None:
    thop = {f"{place}total_{what}": torch.zeros(1, dtype=torch.float64) for place in ("", "blocks.0.", "blocks.0.attn.")
            for what in ("ops", "params")}  # fmt: skip
    more = {"criterion.weight": torch.ones(5), "mask_token": torch.zeros(1, 1, 48), "n_averaged": torch.tensor(3)}
    path = saved(tmp_path / "x.pth", state() | thop | more)
    assert_same_answers(ours(path), answer(timms()))
    (said,) = choices(path)
    assert said.startswith("left out of the file, no part of the model: blocks.0.attn.total_ops, ")


def test_an_embedding_that_the_model_has_no_place_for_is_left_out_and_no_other_model_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", state() | {"pos_embed": torch.ones(1, 64, 48)})
    assert_same_answers(ours(path), answer(timms()))
    assert choices(path) == ("left out of the file, no part of the model: pos_embed",)


@pytest.mark.parametrize("name", ["neck.0.weight", "blocks.0.attn.q_norm.weight", "norm_pre.weight", "extra"])
def test_what_a_network_would_compute_with_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    text = refusal(saved(tmp_path / "x.pth", state() | {name: torch.ones(48)}))
    assert f"does not fit tiny: unexpected {name}. A model that computes with them is another one" in text
    assert f"state_dict.pop('{name}')" in text


@pytest.mark.parametrize(
    ("theirs", "our_words"),
    [("transformer.layers.", "blocks."), ("blocks.wrapped.", "blocks."), ("stages.0.", "blocks.")],
)
def test_the_replacement_that_would_make_names_fit_is_said(tmp_path: Path, theirs: str, our_words: str) -> None:
    renamed = {name.replace("blocks.", theirs, 1): each for name, each in state().items()}
    text = refusal(saved(tmp_path / "x.pth", renamed))
    rule = re.search(r"With '([^']*)' for '([^']+)' in these names it would fit", text)
    assert rule, text
    again = {name.replace(rule[2], rule[1], 1): each for name, each in renamed.items()}
    assert again.keys() == state().keys()


@pytest.mark.parametrize(
    ("suffixes", "sentence"),
    [
        (("_flat_param",), "FSDP has flattened them"),
        (("parametrizations.weight.original0", "parametrizations.weight.original1"), "remove_parametrizations"),
        (("weight_g", "weight_v"), "remove_weight_norm"),
        (("weight_orig", "weight_mask"), "prune.remove"),
        (("weight", "weight.absmax"), "They are quantised: needs the weights of before that"),
    ],
)
def test_what_frameworks_make_of_a_weight_is_refused_with_what_undoes_it(
    tmp_path: Path, suffixes: tuple[str, ...], sentence: str
) -> None:
    tensors = dict(state())
    tensor = tensors.pop("blocks.0.mlp.fc1.weight")
    tensors |= {f"blocks.0.mlp.fc1.{suffix}": tensor for suffix in suffixes}
    assert sentence in refusal(saved(tmp_path / "x.pth", tensors))


def test_empty_tensors_are_deepspeeds(tmp_path: Path) -> None:
    """ZeRO's third stage leaves the names and shapes of nothing, and the numbers in other files."""
    path = saved(tmp_path / "mp_rank_00_model_states.pt", {"module": {name: torch.empty(0) for name in state()}})
    assert "They are empty, as DeepSpeed leaves them" in refusal(path)
    whole = {"module": {f"module.{name}": each.bfloat16() for name, each in state().items()}, "ds_version": "0.15"}
    assert_same_answers(ours(saved(tmp_path / "y.pt", whole)), answer(rounded(torch.bfloat16)))


def rounded(dtype: torch.dtype) -> Any:
    model = timms()
    model.load_state_dict({name: each.to(dtype).float() for name, each in state().items()})
    return model


def test_a_head_behind_dropout_is_refused_with_the_name_that_it_needs(tmp_path: Path) -> None:
    tensors = {name.replace("head.", "head.1."): each for name, each in state().items()}
    assert (
        "Where only dropout stands before it, this is the model's head: with 'head.' for 'head.1.' in these names it "
        "would fit." in refusal(saved(tmp_path / "x.pth", tensors))
    )


@pytest.mark.parametrize(
    ("how", "given"),
    [({"depth": 3}, "depth=3"), ({"embed_dim": 96}, "embed_dim=96"), ({"patch_size": 8}, "patch_size=8")],
)
def test_a_model_of_other_measures_is_refused_with_them(tmp_path: Path, how: dict[str, Any], given: str) -> None:
    named = dataclasses.replace(tiny.TINY, timm="vit_small_patch16_rope_mixed_224")
    text = refusal(saved(tmp_path / "x.pth", state(**how)), spec=named)
    assert "tiny has depth 2, embed_dim 48, patch_size 4. If it was trained so, --model timm:" in text
    assert f"--model-args {given} is that model, with its num_heads, which no file says." in text


def test_matrices_of_zeros_are_said(tmp_path: Path) -> None:
    """A download that has not ended may have the file's full length."""
    tensors = state() | {"blocks.1.mlp.fc2.weight": torch.zeros(48, 192)}
    assert choices(saved(tmp_path / "x.pth", tensors)) == (
        "zeros alone are in blocks.1.mlp.fc2.weight: so they are where a download has not ended",
    )
    assert choices(saved(tmp_path / "y.pth", state())) == ()


def test_of_two_networks_in_one_dictionary_the_other_is_not_what_is_left_out(tmp_path: Path) -> None:
    """As ema-pytorch's `EMA` has them."""
    both = {f"online_model.{name}": each for name, each in state(1).items()}
    both |= {f"ema_model.{name}": each for name, each in state(0).items()} | {"initted": torch.tensor(True)}
    path = saved(tmp_path / "x.pth", both | {"step": torch.tensor(3)})
    assert_same_answers(ours(path), answer(timms(0)))
    assert choices(path) == (
        "weights are the file's ema_model (averaged), not online_model: --weights-key chooses",
        "left out of the file, no part of the model: initted, step",
    )
    assert_same_answers(ours(path, request(weights="x", weights_key="online_model")), answer(timms(1)))


def test_adapters_are_refused_with_what_merges_them(tmp_path: Path) -> None:
    lora = {
        f"base_model.model.{name.replace('attn.qkv', 'attn.qkv.base_layer')}": each for name, each in state().items()
    }
    lora |= {"base_model.model.blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(4, 48)}
    assert "merge them first, with model.merge_and_unload()" in refusal(saved(tmp_path / "x.pth", lora))


# Heads and pooling


def test_a_backbone_without_a_head(tmp_path: Path) -> None:
    save_file(state(num_classes=0), tmp_path / "x.safetensors")
    asked = request(output="cls")
    assert loaded(tmp_path / "x.safetensors", asked)[1].classes == 0
    assert_same_answers(ours(tmp_path / "x.safetensors", asked), answer(timms(num_classes=0)))


@pytest.mark.parametrize("classes", [1, 2, 37])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    path = saved(tmp_path / "x.pth", state(num_classes=classes))
    assert_same_answers(ours(path), answer(timms(num_classes=classes)))


def test_mean_pooling_with_its_norm_behind_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", state(global_pool="avg"))
    assert "fc_norm.weight" in state(global_pool="avg")
    assert_same_answers(ours(path), answer(timms(global_pool="avg")))
    assert choices(path) == ("pooled is the mean over patches, normalised behind it, as the file's fc_norm says",)
    model = timms(global_pool="avg")
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(tiny.images()))
    assert_same_answers(ours(path, request(output="tokens")), tokens.numpy())
    assert_same_answers(ours(path, request(output="features:0")), _features(model))


def _features(model: Any) -> Any:
    with torch.inference_mode():
        _, (found,) = model.forward_intermediates(torch.from_numpy(tiny.images()), indices=[0], norm=True)
    return found.numpy()


def test_a_head_without_a_bias(tmp_path: Path) -> None:
    model = timms()
    model.head.bias = None
    path = saved(tmp_path / "x.pth", model.state_dict())
    assert_same_answers(ours(path), answer(model))
    assert choices(path) == ("the head has no bias",)


def test_a_distilled_models_second_head_is_refused(tmp_path: Path) -> None:
    two = state() | {"head_dist.weight": torch.zeros(5, 48), "head_dist.bias": torch.zeros(5)}
    assert "It is of a distilled model, with two heads" in refusal(saved(tmp_path / "x.pth", two))


@pytest.mark.parametrize(("channels", "sentence"), [(1, "of a model for gray images"), (4, "for images of 4 channels")])
def test_other_channels_than_three_are_refused(tmp_path: Path, channels: int, sentence: str) -> None:
    text = refusal(saved(tmp_path / "x.pth", state(in_chans=channels)))
    assert f"wrong shape patch_embed.proj.weight (48, {channels}, 4, 4), needs (48, 3, 4, 4): it is {sentence}" in (
        text.replace("it is for", "it is of a model for").replace("it is of a model for images", "it is for images")
    )


def test_what_the_sentence_says_of_gray_models_is_right(tmp_path: Path) -> None:
    gray = timms(in_chans=1)
    tensors = dict(gray.state_dict())
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].repeat(1, 3, 1, 1) / 3
    path = saved(tmp_path / "x.pth", tensors)
    one = torch.from_numpy(tiny.images()[:, :1])
    _, weights = loaded(path)
    model = timms()
    model.load_state_dict(tensors)
    with torch.inference_mode():
        assert_same_answers(model(one.repeat(1, 3, 1, 1)).numpy(), gray(one).numpy())
    assert weights.classes == 5


# Other sizes


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (48, 48)])
def test_an_embedding_of_another_grid(tmp_path: Path, size: tuple[int, int]) -> None:
    spec = dataclasses.replace(TINY_APE, ape_grid=8)
    path = saved(tmp_path / "x.pth", state(ape=True, size=size))
    there = Resolution(height=size[0], width=size[1])
    assert_same_answers(ours(path, request(spec, size=there)), answer(timms(ape=True, size=size), there))
    _, weights = loaded(path, request(spec, size=there))
    assert (weights.embed_grid, weights.choices) == ((size[0] // 4, size[1] // 4), ())


def test_an_embedding_of_a_grid_that_no_size_has_is_refused(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_APE, ape_grid=8)
    path = saved(tmp_path / "x.pth", state(ape=True, size=(32, 64)))
    assert "pos_embed (1, 128, 48), needs (1, 64, 48), a square grid or that of a --res" in refusal(path, spec=spec)


def test_a_resized_embedding_is_said(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_APE, ape_grid=8)
    path = saved(tmp_path / "x.pth", state(ape=True, size=(48, 48)))
    assert choices(path, spec=spec) == ("the absolute embedding is resized from 12x12 to 8x8 patches",)


# Kinds of file


def test_a_bare_pickle_of_tensors(tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": state(), "epoch": 3}, protocol))
        assert_same_answers(ours(tmp_path / "x.pkl"), answer(timms()))


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numpy(tmp_path: Path, protocol: int) -> None:
    arrays = {name: each.numpy() for name, each in state().items()}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    assert_same_answers(ours(tmp_path / "x.pkl"), answer(timms()))
    assert_same_answers(ours(saved(tmp_path / "x.pth", arrays, pickle_protocol=protocol)), answer(timms()))
    by_column = {name: np.asfortranarray(each) for name, each in arrays.items()}
    assert_same_answers(ours(saved(tmp_path / "y.pth", by_column, pickle_protocol=protocol)), answer(timms()))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_protocol(tmp_path: Path, protocol: int, legacy: bool) -> None:
    path = saved(tmp_path / "x.pth", {"model": state()}, pickle_protocol=protocol,
                 _use_new_zipfile_serialization=not legacy)  # fmt: skip
    assert_same_answers(ours(path), answer(timms()))


class Config(dict[str, Any]):
    """A configuration as yacs, easydict and omegaconf have them: a dictionary with attributes."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__.update(values)


@dataclasses.dataclass
class State:
    """What a trainer might pickle as it is."""

    lr: float
    paths: list[Path]
    kind: Any
    parts: tuple[object, ...] = ()


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_keeps_beside_weights(tmp_path: Path, legacy: bool) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=Path("runs"), nested=argparse.Namespace(a=1)),
        "config": Config(MODEL=Config(TYPE="swin", DEPTHS=[2, 2])),
        "state": State(lr=1.0, paths=[Path("a/b")], kind=collections.OrderedDict(a=1), parts=({1}, frozenset({2}), 3j)),
        "best": np.float64(0.9),
        "history": collections.defaultdict(list, {"loss": [np.float32(1.0)]}),
        "counts": collections.Counter("aab"),
        "curve": np.arange(5.0),
        "rng": (torch.get_rng_state(), np.random.default_rng(0), np.random.RandomState(0).get_state()),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        "when": __import__("datetime").datetime(2024, 1, 2),
        "bytes": (b"ab", bytearray(b"cd")),
        "activation": torch.nn.functional.gelu,
    }
    path = saved(tmp_path / "x.pth", {"model": state(), **beside}, _use_new_zipfile_serialization=not legacy)
    assert_same_answers(ours(path), answer(timms()))
    dictionaries = file.read(path).dictionaries
    assert torch.equal(dictionaries[""]["curve"], torch.arange(5.0, dtype=torch.float64))


def test_weights_in_a_dictionary_of_another_class(tmp_path: Path) -> None:
    for content in (Config(model=state()), State(1.0, [], {"net": state()}), [1, (state(), 2)]):
        assert_same_answers(ours(saved(tmp_path / "x.pth", content)), answer(timms()))


@pytest.mark.parametrize("place", ["", "model", "runs.ema"])
def test_a_whole_pickled_module_is_refused_in_a_sentence_of_its_own(tmp_path: Path, place: str) -> None:
    content: object = timms()
    for word in reversed(place.split(".")) if place else ():
        content = {word: content, "epoch": 3}
    at = f" under {place}" if place else ""
    assert refusal(saved(tmp_path / "x.pth", content)) == (
        f"{tmp_path}/x.pth holds{at} a whole pickled module (timm.models.eva.Eva), whose class would have to be "
        'imported and run: save its tensors alone where it was made: torch.save(model.state_dict(), "weights.pth"), '
        "and give that file."
    )


def test_torchscript_is_refused_in_a_sentence_of_its_own(tmp_path: Path) -> None:
    module = torch.jit.script(torch.nn.Linear(2, 2))
    module.save(str(tmp_path / "x.pt"))
    text = refusal(tmp_path / "x.pt")
    assert "is a TorchScript program" in text
    assert "damaged" not in text


def test_transformers_wrapper_of_timm_in_shards_and_whole(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(
        architecture="vit_small_patch16_rope_mixed_224", num_labels=5,
        model_args={"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
    )  # fmt: skip
    model = tiny.randomised(transformers.TimmWrapperForImageClassification(config))
    for shard in ("1GB", "100KB"):
        folder = tmp_path / shard
        model.save_pretrained(folder, max_shard_size=shard)
        assert (folder / "config.json").is_file()
        assert_same_answers(ours(folder), answer(timms()))
    assert len(list((tmp_path / "100KB").glob("*.safetensors"))) > 1


def test_accelerates_shards(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True).save_model(timms(), tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_same_answers(ours(tmp_path), answer(timms()))


def test_a_folder_that_accelerates_save_state_wrote(tmp_path: Path) -> None:
    """Averaged weights that were registered for it are another file of the folder: that they are not read is said."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(timms())
    accelerator.register_for_checkpointing(AveragedModel(timms(1)))
    accelerator.save_state(str(tmp_path / "step"))
    assert_same_answers(ours(tmp_path / "step"), answer(model))
    assert choices(tmp_path / "step") == ("of the folder model.safetensors is read, not custom_checkpoint_0.pkl",)
    assert_same_answers(ours(tmp_path / "step" / "custom_checkpoint_0.pkl"), answer(timms(1)))


def test_one_shard_alone_is_refused_as_such(tmp_path: Path) -> None:
    half = {name: each for name, each in state().items() if not name.startswith("blocks.1.")}
    save_file(half, tmp_path / "model-00001-of-00002.safetensors")
    assert "one of several shards are: give their folder or index" in refusal(
        tmp_path / "model-00001-of-00002.safetensors"
    )
    save_file(half, tmp_path / "model-00002-of-00002.safetensors")
    assert "add the index of these shards" in refusal(tmp_path)


def test_an_index_under_any_name(tmp_path: Path) -> None:
    tensors = state()
    half = sorted(tensors)[::2]
    save_file({name: tensors[name] for name in half}, tmp_path / "a.bin")
    torch.save({name: tensors[name] for name in tensors if name not in half}, tmp_path / "b")
    where = {name: "a.bin" if name in half else "b" for name in tensors}
    (tmp_path / "weights.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same_answers(ours(tmp_path / "weights.index.json"), answer(timms()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "x.pth", {name: each.to(dtype) for name, each in state().items()})
    assert_same_answers(ours(path), answer(rounded(dtype)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_quantised_weights_are_refused_by_what_makes_them(tmp_path: Path) -> None:
    tensors: dict[str, Any] = state()
    tensors["blocks.0.attn.qkv.weight"] = torch.quantize_per_tensor(
        tensors["blocks.0.attn.qkv.weight"], 0.1, 0, torch.qint8
    )
    text = refusal(saved(tmp_path / "x.pth", tensors))
    assert "missing blocks.0.attn.qkv.weight. blocks.0.attn.qkv.weight is made by torch._utils._rebuild_qtensor" in text


def test_the_file_is_not_changed_and_shared_memory_stays_shared(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    path = saved(tmp_path / "x.pth", {"a": shared, "b": shared[2:], "c": shared.reshape(2, 3).T})
    before = path.read_bytes()
    found = file.read(path).tensors
    assert torch.equal(found["c"], shared.reshape(2, 3).T)
    assert found["b"].data_ptr() == found["a"].data_ptr() + 8
    found["a"].add_(1)
    assert path.read_bytes() == before


def test_a_dictionary_that_does_not_fit_is_passed_over_and_said(tmp_path: Path) -> None:
    averaged = state(1)
    del averaged["norm.weight"]
    path = saved(tmp_path / "x.pth", {"state_dict": state(), "state_dict_ema": averaged})
    assert_same_answers(ours(path), answer(timms()))
    assert choices(path) == (
        "weights are the file's state_dict",
        "passed over, as it does not fit: state_dict_ema",
    )
    assert "does not fit tiny: missing norm.weight" in refusal(path, weights="x", weights_key="state_dict_ema")


def test_a_key_names_one_dictionary_before_those_within_others(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": state(), "old": {"model": state(1)}})
    assert_same_answers(ours(path, request(weights="x", weights_key="model")), answer(timms()))
    assert_same_answers(ours(path, request(weights="x", weights_key="old.model")), answer(timms(1)))


def test_an_optimizers_own_state_is_refused(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    path = saved(tmp_path / "optimizer.pt", optimizer.state_dict())
    assert refusal(path) == "optimizer.pt holds an optimizer's tensors only: needs a model's."


def test_a_file_of_an_optimizer_alone_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"optimizer": {"patch_embed.proj.weight": torch.ones(3)}})
    assert refusal(path) == "x.pth holds an optimizer's tensors only: needs a model's."
