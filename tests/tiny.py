"""A model of two blocks that takes milliseconds, as timm builds it, and what our deploy form makes of a file of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch

from ropevit_export.checkpoint import file
from ropevit_export.models import filed
from ropevit_export.models.resize import resize
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import DIGITS
from ropevit_export.request import Request
from ropevit_export.trace.export import FORMS
from ropevit_export.trace.positions import TableBank
from ropevit_export.values import Dim, IoSpec, Resolution, Weights
from tests.conftest import tables_of

TINY = dataclasses.replace(DIGITS, name="tiny", short="tiny", depths=(2,), packaged=None, classes=1000)
TINY_APE = dataclasses.replace(TINY, name="tiny_ape", short="tiny_ape", ape=True)
SIZE = Resolution(height=32, width=32)
Tensors = dict[str, torch.Tensor]
Array = npt.NDArray[np.float32]


def randomised(model: torch.nn.Module, seed: int = 0) -> Any:
    """Values under which every parameter matters: none is zero, one, or the same for two channels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            centred = name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) or "gamma" in name
            value.copy_(1 + 0.2 * drawn if centred else 0.2 * drawn)
    return model.eval()


def timms(seed: int = 0, *, size: tuple[int, int] = (32, 32), ape: bool = False, **how: Any) -> Any:
    """timm's own class, small. `how`: num_classes, global_pool, in_chans …"""
    return copy.deepcopy(_built(seed, size, ape, tuple(how.items())))


@functools.lru_cache(maxsize=64)
def _built(seed: int, size: tuple[int, int], ape: bool, how: tuple[tuple[str, Any], ...]) -> Any:
    name = f"vit_small_patch16_rope_mixed_{'ape_' if ape else ''}224"
    given = {"img_size": size, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    given |= dict(how)
    return randomised(timm.create_model(name, **given), seed)


def state(seed: int = 0, *, size: tuple[int, int] = (32, 32), ape: bool = False, **how: Any) -> Tensors:
    """Its parameters, which calls share: not to be changed in place."""
    return dict(_built(seed, size, ape, tuple(how.items())).state_dict())


def request(spec: ModelSpec = TINY, *, output: str = "logits", size: Resolution = SIZE, **rest: Any) -> Request:
    return Request(model=spec, resolutions=(size,), output=output, **rest)


def loaded(path: Path, asked: Request | None = None) -> tuple[ModelSpec, Weights]:
    """A file as `stages.load` reads it."""
    asked = asked or request()
    given = filed.Given(key=asked.weights_key, sizes=asked.resolutions, published=False)
    return filed.read(asked.model, file.read(path), given)


def images(size: Resolution = SIZE) -> Array:
    return np.random.default_rng(7).standard_normal((2, 3, size.height, size.width), dtype=np.float32)


def ours(path: Path, asked: Request | None = None) -> Array:
    """What the folded form of a file answers, the first output."""
    asked = asked or request()
    spec, weights = loaded(path, asked)
    size = asked.resolutions[0]
    asked = dataclasses.replace(asked, model=spec)
    io = IoSpec(resolution=size, batch=Dim(min=2, opt=2, max=2), outputs=asked.outputs, pixels=False)
    tables = tables_of(spec, weights, size)
    module = FORMS[spec.family](spec, resize(spec, weights, size), TableBank(tables) if tables else None, io).eval()
    with torch.inference_mode():
        found: Array = module(torch.from_numpy(images(size)))[0].numpy()
    return found


def answer(model: Any, size: Resolution = SIZE) -> Array:
    with torch.inference_mode():
        found: Array = model(torch.from_numpy(images(size))).numpy()
    return found


def assert_same_answers(found: Array, theirs: Array) -> None:
    """Folding moves the last digits; any wrong parameter moves the first."""
    assert found.shape == theirs.shape
    assert np.abs(found - theirs).max() < 2e-4 * np.abs(theirs).max()
