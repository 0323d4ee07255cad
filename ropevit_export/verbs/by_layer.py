"""`check BUNDLE --by-layer`: where a graph leaves the reference, block by block, in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ropevit_export.backends.select import checkers
from ropevit_export.bundle import golden, manifest
from ropevit_export.errors import BundleError
from ropevit_export.formats import EIGHT_BITS
from ropevit_export.images.preprocess import normalise
from ropevit_export.models.spec import Preprocess
from ropevit_export.passes.places import block_values
from ropevit_export.runtime import host_inputs
from ropevit_export.values import Resolution
from ropevit_export.verbs.original import reference_of

# Rounding of one operation, over its result's rms: a block errs by several of them.
_ROUNDING = {"fp32": 2.0**-22, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-6, "fp8": 2.0**-4}
# What counts as a jump: so many times the largest error before it, or of rounding where nothing is before it.
_JUMP = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """The graph's value at one place against the reference's: rms of the difference over rms of the reference."""

    artifact: str
    runtime: str
    place: str
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """One graph on one runtime. `jump`: the first place where the error is out of proportion to all before it."""

    artifact: str
    runtime: str
    resolution: Resolution
    errors: tuple[LayerError, ...]
    jump: LayerError | None

    def sentence(self) -> str:
        last = self.errors[-1]
        if self.jump is None:
            return f"{self.artifact} at {self.resolution}: no jump; the error ends at {last.error:.1e} in {last.place}"
        return f"{self.artifact} at {self.resolution}: the error jumps to {self.jump.error:.1e} at {self.jump.place}"


def by_layer(bundle: Path, *, weights: str | None = None) -> list[Layers]:
    """Compare every block of every graph with the unfolded model in float64, on the golden inputs of its first size.

    Files are taken as they are, changed ones too: that may be what is looked for. Raises RopevitError.
    """
    listed = manifest.read(bundle)
    preprocess = Preprocess(**listed.preprocess.model_dump())
    out = []
    for artifact in (each for each in listed.artifacts if each.kind == "onnx"):
        size = Resolution(height=artifact.resolutions[0][0], width=artifact.resolutions[0][1])
        feed, _ = golden.read(bundle / golden.name(size), [])
        feed = np.resize(feed, (artifact.batch.min, *feed.shape[1:]))
        images = normalise(feed.astype(np.uint8), preprocess) if preprocess.dtype == "uint8" else feed
        theirs = reference_of(listed, size, weights).block_values(images.astype(np.float32))
        model = ir.load(bundle / artifact.path)
        values = {place: value for place, value in block_values(model.graph).items() if place in theirs}
        if artifact.precision in EIGHT_BITS:  # outliers were moved out of the norms, exactly
            values = {place: value for place, value in values.items() if ".norm" not in place}
        if not values:
            raise BundleError(f"{artifact.path} has no blocks that can be told apart: was it made by this package?")
        feeds = {artifact.inputs[0].name: feed, **host_inputs(bundle, artifact)(size)}
        model.graph.outputs.extend(value for value in values.values() if value not in model.graph.outputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / artifact.path
            ir.save(model, path, external_data="weights.data")
            for runner in checkers(path, artifact.precision):
                answers = runner.run(feeds)
                errors = tuple(
                    LayerError(
                        artifact=artifact.path,
                        runtime=runner.describe,
                        place=place,
                        error=_error(answers[value.name or ""], theirs[place]),
                    )
                    for place, value in values.items()
                )
                out.append(
                    Layers(
                        artifact=artifact.path,
                        runtime=runner.describe,
                        resolution=size,
                        errors=errors,
                        jump=first_jump(errors, artifact.precision),
                    )
                )
    return out


def first_jump(errors: Sequence[LayerError], precision: str) -> LayerError | None:
    largest = _ROUNDING[precision]
    for each in errors:
        if not each.error <= _JUMP * largest:
            return each
        largest = max(largest, each.error)
    return None


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Both (B, tokens, channels); the graph may have left out tokens that nobody reads."""
    mine = ours.astype(np.float64).reshape(len(theirs), -1, theirs.shape[-1])
    other = theirs[:, : mine.shape[1]]
    return float(np.sqrt(((mine - other) ** 2).mean() / (other**2).mean()))
