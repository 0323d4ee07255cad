"""Models and weights that several tests share. "Theirs" is the authors' implementation, timm or a formula."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from ropevit_export import cli
from ropevit_export.bundle import golden
from ropevit_export.images.preprocess import normalise
from ropevit_export.machine import hardware
from ropevit_export.models import reference
from ropevit_export.models.adopt import adopt
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.resize import resize
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.parity import samples
from ropevit_export.request import Request
from ropevit_export.rope.tables import block_factors, block_tables
from ropevit_export.trace import export
from ropevit_export.trace.export import FORMS
from ropevit_export.trace.positions import TableBank
from ropevit_export.values import Dim, IoSpec, Output, Resolution, Weights
from tests import traces
from tests.rows import shallow

if TYPE_CHECKING:
    from ropevit_export.values import Factors, Tables

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes have a core each: two pools of threads that spin for the same cores take three times as long.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

    class _OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    onnxruntime.SessionOptions = _OneThread


# What this process sent elsewhere than to itself. Some libraries report their use and keep quiet where they can't.
_SENT: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    host = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
        _SENT.append(f"{event} {host}")
        raise OSError(errno.ENETUNREACH, "tests have no network")


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def _nothing_is_sent() -> Iterator[None]:
    yield
    sent = list(_SENT)
    _SENT.clear()
    assert not sent


Array = npt.NDArray[np.float32]
# Whether this CPU multiplies in bfloat16, without which OpenVINO refuses to.
HAS_BFLOAT16 = bool({"avx512_bf16", "amx_bf16"} & set(hardware.cpu_features()))
ONE = Dim(min=1, opt=1, max=1)


@pytest.fixture(autouse=True, scope="session")
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """See `traces.py`; the processes of pytest-xdist share a folder."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_export", traces.once(folder))
        yield


@pytest.fixture
def traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_export", traces.TRACE)


LOGITS = (Output.named("logits", pool="token"),)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A seeded model at one size, with images and the reference's logits."""

    spec: ModelSpec
    resolution: Resolution
    weights: Weights
    sized: Weights
    images: Array
    theirs: Array

    @property
    def tables(self) -> list[Tables]:
        return tables_of(self.spec, self.weights, self.resolution)

    def factors(self, limit: Resolution) -> list[Factors]:
        return block_factors(frequencies_of(self.spec, self.weights), self.spec.rope.coordinates, self.spec.grid(limit))

    def io(self, output: str = "logits", *, batch: Dim = ONE, pixels: bool = False) -> IoSpec:
        outputs = outputs_of(self.spec, output)
        return IoSpec(resolution=self.resolution, batch=batch, outputs=outputs, pixels=pixels)

    def deploy(self, **changes: object) -> Array:
        """Logits of the folded module; `changes` replace what it is built from, to build a wrong one."""
        given = {"weights": self.sized, "tables": self.tables} | changes
        bank = TableBank(given["tables"]) if given["tables"] else None  # type: ignore[arg-type]
        module = FORMS[self.spec.family](self.spec, given["weights"], bank, self.io()).eval()  # type: ignore[arg-type]
        with torch.inference_mode():
            out: Array = torch.cat([module(torch.from_numpy(image[None]))[0] for image in self.images]).numpy()
        return out


def outputs_of(spec: ModelSpec, output: str) -> tuple[Output, ...]:
    """What `--output` asks for of a model."""
    size = Resolution(height=spec.multiple, width=spec.multiple)
    return Request(model=spec, resolutions=(size,), output=output).outputs


def frequencies_of(spec: ModelSpec, weights: Weights) -> list[npt.NDArray[np.generic]]:
    return FAMILIES[spec.family].frequencies(spec, weights)


def tables_of(spec: ModelSpec, weights: Weights, resolution: Resolution) -> list[Tables]:
    """What every block turns by at a size; nothing where it doesn't turn."""
    return block_tables(frequencies_of(spec, weights), spec.rope.coordinates, spec.window(resolution), spec.prefix)


@functools.lru_cache(maxsize=16)
def _case(model: str, size: str, output: str, deep: bool) -> Case:
    spec, resolution = find_model(model), Resolution.parse(size)
    spec = spec if deep else shallow(spec)
    weights = adopt(spec, random_checkpoint(spec, seed=0))
    sized = resize(spec, weights, resolution)
    preprocess = Request(model=spec, resolutions=(resolution,)).preprocess
    images = normalise(samples.pixels(preprocess, resolution, seed=0), preprocess)
    theirs = reference.run(reference.build(spec, sized, resolution, outputs_of(spec, output)), images)[output]
    return Case(spec=spec, resolution=resolution, weights=weights, sized=sized, images=images, theirs=theirs)


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    """`case("rope_mixed_deit_small", "224")`: of a few blocks only, unless `deep`."""

    def make(model: str, size: str, output: str = "logits", *, deep: bool = False) -> Case:
        return _case(model, size, output, deep)

    return make


@pytest.fixture
def graph_of() -> Callable[[str], ir.Model]:
    """An ONNX model from its text form."""
    return ir.from_onnx_text


SMALL = ("--model", "shallow_rope_axial_deit_small", "--res", "32", "--engine", "none", "-q")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of seeded weights; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("bundles") / "small"
    assert cli.run([*SMALL, "--weights", "random", "--out", str(path)]) == 0
    return path


def golden_of(path: Path, output: str = "logits") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(images, expected) of a golden file of one output."""
    images, expected = golden.read(path, [output])
    return images, expected[output]


GOLDEN = Path(__file__).with_name("golden")
