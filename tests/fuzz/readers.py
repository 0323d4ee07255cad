"""The readers that are fuzzed, each with all that the commands do with such a file and that needs no runtime.

`inspect`, `check`, `load`, `predict` and `report` read bundles; exports read checkpoints and recipes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import click
import numpy as np
import torch
from safetensors.numpy import save

from ropevit_export import runtime, tuned
from ropevit_export.bundle import facts, manifest, positions
from ropevit_export.checkpoint import file
from ropevit_export.cli import export as export_command
from ropevit_export.cli import inspect as inspect_command
from ropevit_export.cli import matrix
from ropevit_export.errors import BundleError, CheckpointError, InputError, RecipeError, UsageError
from ropevit_export.images import files as images
from ropevit_export.models import adopt, filed, timm_modules  # noqa: F401 - imported now, and not while time is taken
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.report import page
from ropevit_export.values import Resolution
from ropevit_export.verbs import check
from tests.fuzz import bundle, mutators
from tests.fuzz.judge import Reader

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

_LARGEST = 512  # pixels a side of what is prepared and filled: a larger size takes longer, and that is no fault
_OF_BUNDLES = (BundleError, UsageError)
_LIMITS: dict[str, facts.Tolerance] = {name: dataclasses.asdict(each) for name, each in TOLERANCES.items()}


def _shown(bundle: Path, gpu: str | None = None) -> None:
    """What `inspect` prints, but for drawing tables, which takes longer than the rest."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        mock.patch.object(inspect_command, "show"),
    ):
        inspect_command.inspect.callback(bundle=bundle, gpu=gpu, largest=5, as_json=False)  # type: ignore[misc]


def _with_times(folder: Path) -> None:
    _shown(folder, "RTX 4090")


def _engine(folder: Path) -> None:
    _shown(folder / bundle.ENGINE)


def _compare_facts(folder: Path) -> None:
    facts.require_same(folder, manifest.read(folder), _LIMITS)


class _Answers:
    """Stands for a runtime: zeros of the shape that the graph gives."""

    describe = "none"

    def __init__(self, artifact: manifest.ArtifactEntry) -> None:
        self.artifact = artifact

    def run(self, feeds: Arrays) -> dict[str, Array]:
        count = len(next(iter(feeds.values())))
        return {each.name: np.zeros((count, bundle.CLASSES), np.float32) for each in self.artifact.outputs}


def _replay(folder: Path) -> None:
    """As `check` does, but for the hashes, which are of what the file was before."""
    listed = manifest.read(folder)
    for artifact in listed.artifacts:
        for height, width in artifact.resolutions:
            if max(height, width) <= _LARGEST:
                size = Resolution(height=height, width=width)
                check.replay(folder, listed, artifact, _Answers(artifact), size)


def _prepare(folder: Path) -> None:
    """As `predict` does: a picture at every size, and what is fed beside it."""
    listed = manifest.read(folder)
    model = runtime.load(folder)
    for size in model.sizes:
        if max(size.height, size.width) <= _LARGEST:
            model.prepare(np.zeros((6, 9, 3), np.uint8), size)
    for artifact in listed.artifacts:
        runtime.host_inputs(folder, artifact)(Resolution(height=bundle.SIDE, width=bundle.SIDE))


def _report(folder: Path) -> None:
    page.render([page.Subject(folder, manifest.read(folder), folder.name)])


def _choose(folder: Path) -> None:
    tuned.choose(folder)


def _checkpoint(name: str) -> Callable[[Path], None]:
    """As an export does that takes the file for a model's, but for looking at every other model that it may be of. What
    does not fit the model may fit another, which then lays it out in memory.
    """
    spec = find_model(bundle.MODEL)
    given = filed.Given(key=None, sizes=(Resolution(height=32, width=32),), published=False)

    def read(folder: Path) -> None:
        checkpoint = file.read(folder / name)
        for tensors in checkpoint.dictionaries.values():
            for tensor in tensors.values():
                tensor.to(torch.float32).contiguous()
        with mock.patch.object(adopt, "_owner", return_value=""):
            filed.read(spec, checkpoint, given)

    return read


def _shards(folder: Path) -> None:
    """What an index lists: one of safetensors, and one of torch.save."""
    ones = {"a": np.ones(3, np.float32)}
    (folder / "model-1.safetensors").write_bytes(save(ones))
    torch.save({"b": torch.ones(2)}, folder / "model-2.bin")


_INDEX = "model.safetensors.index.json"


def _recipe(folder: Path) -> None:
    """Alone, and as one of a matrix."""
    with _context(folder / "recipe.toml") as context:
        export_command._request(export_command._one_bundle(context))


def _matrix(folder: Path) -> None:
    with _context(folder / "recipe.toml", "--matrix") as context:
        matrix._cells(context, export_command._request)


def _context(recipe: Path, *more: str) -> click.Context:
    return export_command.cli.make_context("ropevit-export", ["--recipe", str(recipe), *more])


_OPTIONS = tuple(
    max(each.opts, key=len).removeprefix("--") for each in export_command.cli.params if isinstance(each, click.Option)
)

READERS: dict[str, Reader] = {
    "zip": Reader(
        file="weights.pth", read=(_checkpoint("weights.pth"),), refuses=(CheckpointError,), mutate=mutators.archive
    ),
    "pickle": Reader(
        file="weights.pth", read=(_checkpoint("weights.pth"),), refuses=(CheckpointError,), mutate=mutators.pickled
    ),
    "safetensors": Reader(
        file="weights.bin", read=(_checkpoint("weights.bin"),), refuses=(CheckpointError,), mutate=mutators.safetensors
    ),
    "shards": Reader(
        file=_INDEX, beside=_shards, read=(_checkpoint(_INDEX),), refuses=(CheckpointError,),
        mutate=mutators.json_text,
    ),
    "manifest": Reader(
        file=manifest.MANIFEST, beside=bundle.make, mutate=mutators.json_text,
        opens=manifest.read, read=(_shown, _compare_facts, _replay, _prepare), refuses=(*_OF_BUNDLES, InputError),
    ),
    "report": Reader(
        file=manifest.MANIFEST, beside=bundle.make, mutate=mutators.json_text, read=(_report,), refuses=_OF_BUNDLES
    ),
    "golden": Reader(
        file=bundle.GOLDEN, beside=bundle.make, mutate=mutators.safetensors, read=(_replay, _report),
        refuses=(BundleError,),
    ),
    "positions": Reader(
        file=positions.NAME, beside=bundle.make, mutate=mutators.safetensors, read=(_prepare,), refuses=(BundleError,)
    ),
    "layers": Reader(
        file=bundle.LAYERS, beside=bundle.make, mutate=mutators.json_text, refuses=(BundleError,),
        read=(_with_times, _report),
    ),
    "plan": Reader(
        file=bundle.ENGINE, beside=bundle.make, read=(_engine,), refuses=(BundleError,), longest=256
    ),
    "graph": Reader(
        file=bundle.GRAPH, beside=bundle.make, mutate=mutators.onnx_file, read=(_compare_facts, _shown),
        refuses=(BundleError,),
    ),
    "tuned": Reader(
        file=tuned.TUNED, beside=bundle.make, mutate=mutators.json_text, read=(_choose,), refuses=(BundleError,)
    ),
    "recipe": Reader(
        file="recipe.toml", read=(_recipe, _matrix), refuses=(UsageError, RecipeError), mutate=mutators.toml_text,
        words=_OPTIONS,
    ),
    "picture": Reader(
        file="picture", read=(lambda folder: images.opened(folder / "picture"),), refuses=(InputError,)
    ),
}  # fmt: skip
