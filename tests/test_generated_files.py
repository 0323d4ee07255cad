"""Files that hypothesis makes up: never a traceback, never a model other than the one that the file holds."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ropevit_export.errors import CheckpointError
from tests.tiny import Tensors, loaded, request, state

WORDS = ("model", "state_dict", "module", "net", "weights", "params", "teacher", "student", "ema", "state_dict_ema",
         "model_ema", "a.b", "x y", "0")  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "timm_model.", "net.", "_fsdp_wrapped_module.",
            "anything.")  # fmt: skip
INNER = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
# What no model computes with, and what one might.
HARMLESS = {
    "criterion.weight": torch.ones(5),
    "total_ops": torch.zeros(1, dtype=torch.float64),
    "blocks.0.attn.total_params": torch.zeros(1, dtype=torch.float64),
    "num_updates": torch.tensor(3),
    "mask_token": torch.zeros(1, 1, 48),
    "pos_embed": torch.ones(1, 64, 48),
    "steps": torch.arange(3),
}
HARMFUL = {
    "neck.weight": torch.ones(48, 48),
    "blocks.0.norm3.weight": torch.ones(48),
    "norm_pre.weight": torch.ones(48),
    "extra": torch.ones(1),
    "blocks.2.norm1.weight": torch.ones(48),
    "head.2.weight": torch.ones(3),
}
NAMES = sorted(state())
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclasses.dataclass(frozen=True)
class Made:
    """A file's make-up, and of its network what is not as it should be."""

    nesting: tuple[str, ...]
    prefixes: tuple[str, ...]
    wrapped: dict[str, str]
    extra: tuple[str, ...]
    dtype: torch.dtype
    missing: frozenset[str]
    misshapen: frozenset[str]
    broken: frozenset[str]
    second: tuple[str, ...] | None
    beside: bool
    format: str

    @property
    def is_whole(self) -> bool:
        faults = self.missing | self.misshapen | self.broken
        return not faults and not set(self.extra) & HARMFUL.keys()


def some(names: Any, most: int) -> st.SearchStrategy[frozenset[str]]:
    return st.one_of(st.just(frozenset()), st.frozensets(st.sampled_from(sorted(names)), max_size=most))


@st.composite
def files(draw: st.DrawFn) -> Made:
    rare = st.integers(0, 3).map(lambda n: n == 0)
    return Made(
        nesting=tuple(draw(st.lists(st.sampled_from(WORDS), max_size=3))),
        prefixes=tuple(draw(st.lists(st.sampled_from(PREFIXES), max_size=3))),
        wrapped={block: draw(st.sampled_from(INNER)) for block in draw(some(("blocks.0.", "blocks.1."), 2))},
        extra=tuple(draw(some(HARMLESS, 4)) | (draw(some(HARMFUL, 2)) if draw(rare) else frozenset())),
        dtype=draw(st.sampled_from(DTYPES)),
        missing=draw(some(NAMES, 3)) if draw(rare) else frozenset(),
        misshapen=draw(some(NAMES, 2)) if draw(rare) else frozenset(),
        broken=draw(some(NAMES, 1)) if draw(rare) else frozenset(),
        second=tuple(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))) if draw(rare) else None,
        beside=draw(st.booleans()),
        format=draw(st.sampled_from(("zip", "old", "pickle", "safetensors"))),
    )


def tensors_of(made: Made) -> Tensors:
    out: Tensors = {}
    for name, tensor in (state() | {name: (HARMLESS | HARMFUL)[name] for name in made.extra}).items():
        if name in made.missing:
            continue
        if name in made.misshapen:
            tensor = torch.cat([tensor, tensor])
        if name in made.broken:
            tensor = tensor * float("nan")
        for block, wrapper in made.wrapped.items():
            name = name.replace(block, block + wrapper) if name.startswith(block) else name
        out["".join(made.prefixes) + name] = tensor.to(made.dtype) if tensor.is_floating_point() else tensor
    return out


def nested(content: object, words: tuple[str, ...]) -> object:
    for word in reversed(words):
        content = OrderedDict([(word, content)])
    return content


def write(made: Made, path: Path) -> None:
    tensors = tensors_of(made)
    if made.format == "safetensors":
        save_file({name: each.clone().contiguous() for name, each in tensors.items()}, path)
        return
    content: Any = nested(tensors, made.nesting)
    if made.beside:
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0]}]}
        args = argparse.Namespace(lr=1.0, path=Path("x"))
        other = {"epoch": 3, "args": args, "best": np.float64(0.5), "optimizer": optimizer}
        content = {**content, **other}
    if made.second is not None:
        content = {**content, "second": nested(state(1), made.second)}
    if made.format == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=made.format == "zip")


def official(tensors: Tensors) -> Tensors:
    """Of timm's names the one that is not the authors'."""
    return {("freqs" if name == "rope.freqs" else name): each for name, each in tensors.items()}


def assert_is(found: Tensors, expected: Tensors) -> None:
    for name, tensor in official(expected).items():
        assert torch.equal(found[name].flatten(), tensor.flatten()), name


def some_files(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip


@some_files(40)
@given(made=files())
def test_a_file_is_the_model_that_it_holds_or_an_error(tmp_path: Path, made: Made) -> None:
    assert_is_the_model_or_an_error(tmp_path, made)


@pytest.mark.slow
@some_files(600)
@given(made=files())
def test_so_are_six_hundred_files(tmp_path: Path, made: Made) -> None:
    assert_is_the_model_or_an_error(tmp_path, made)


def assert_is_the_model_or_an_error(tmp_path: Path, made: Made) -> None:
    path = tmp_path / "made"
    write(made, path)
    has_second = made.second is not None and made.format != "safetensors"
    try:
        _, weights = loaded(path, request(output="cls"))
    except CheckpointError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert not made.is_whole or (has_second and "Choose with --weights-key" in said), said
        assert len(said) < 4000
        return
    kept = {name: each.to(made.dtype).float() for name, each in state().items()}
    if has_second and torch.equal(weights.tensors["norm.bias"], state(1)["norm.bias"]):
        assert_is(dict(weights.tensors), state(1))
        return
    # What a file may lack: a head, or of it the bias.
    head = {"head.weight", "head.bias"}
    assert made.is_whole or (made.missing in ({"head.bias"}, head) and not made.misshapen | made.broken), made
    assert not set(made.extra) & HARMFUL.keys()
    assert_is(dict(weights.tensors), {name: each for name, each in kept.items() if name not in made.missing})
    assert weights.classes == (0 if made.missing == head else 5)
    for name in set(made.extra) - {"head"}:
        assert any("left out of the file" in choice for choice in weights.choices), name


@settings(max_examples=100, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data(), kind=st.sampled_from(("zip", "old", "pickle", "safetensors")))
def test_damage_anywhere_is_an_error_or_is_told_by_its_checksum(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    path = tmp_path / "made"
    tensors = state()
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(tensors))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(path.read_bytes())
    # Most of a file is numbers, any of which are some model's: what is around them is where readers go astray.
    edges = st.one_of(st.integers(0, 4000), st.integers(len(content) - 8000, len(content) - 1))
    for at in data.draw(st.lists(edges, min_size=1, max_size=4)):
        content[at % len(content)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        _, weights = loaded(path)
    except CheckpointError:
        return
    if kind == "zip":
        assert_is(dict(weights.tensors), tensors)


def test_the_test_would_see_another_model() -> None:
    with pytest.raises(AssertionError):
        assert_is(official(state(1)), state(0))
