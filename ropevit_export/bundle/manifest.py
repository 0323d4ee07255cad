"""`manifest.json`: what a bundle holds and where it came from. Read by deployment programs, so every field is typed and
an unknown or missing one is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ropevit_export.errors import BundleError, first_fault
from ropevit_export.machine import files
from ropevit_export.models.spec import CropMode, Interpolation
from ropevit_export.values import Form, Output, Pool, TensorSpec

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
# What no number of a manifest exceeds: whoever reads one makes room by it.
_MOST_BYTES = 4 * files.MB  # of a bundle of 50 sizes it has a tenth of that
_MOST_PIXELS = 2**28
# Of a rotary sample: tokens of its grid, and these times the pairs and heads that are drawn over it.
_MOST_TOKENS, _MOST_DRAWN = 2**22, 2**27
_SMALLEST_CROP = 0.05  # below it a picture is resized to twenty times the size and more
Item = TypeVar("Item")
# An error is kept of the first wrong one only: of each of millions they take gigabytes.
Many = Annotated[tuple[Item, ...], FailFast()]
Extent = Annotated[int, Field(ge=1, le=2**31 - 1)]
Prefix = Annotated[int, Field(ge=0, le=2**16)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]  # what a float holds to the last digit
# Radians a token: learned ones are below 100.
Frequency = Annotated[float, Field(ge=-1e6, le=1e6)]
Side = Annotated[int, Field(ge=1, le=2**16)]


def _not_too_many_pixels(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} has more than {_MOST_PIXELS} pixels")
    return size


def _is_of_the_folder(name: str) -> str:
    if name in (".", "..") or len(name.encode()) > files.LONGEST_NAME:
        raise ValueError(f"{name[:40]!r} is no file name")
    return name


# A bundle is flat: a path that leads anywhere else is not of it.
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]+$"), AfterValidator(_is_of_the_folder)]
Size = Annotated[tuple[Side, Side], AfterValidator(_not_too_many_pixels)]
# What stands for an extent that is not known before there is an image.
Symbol = Literal["batch", "height", "width", "rows", "columns", "patches", "tokens"]
Dtype = Literal["float32", "float16", "bfloat16", "uint8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsEntry(_Strict):
    """`source`: a hub repository and file, a file's name, or "random", drawn from `seed`. `remark`: UNTRAINED, if not
    `trained`.
    """

    source: str
    revision: str | None
    sha256: str = Sha256
    trained: bool
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    remark: str | None


class PreprocessEntry(_Strict):
    """What a host does to an RGB image before the graph. `dtype`: of what it makes; uint8: the graph normalises by
    itself.

    Where `crop_mode` is "center", resize the short side to int(size / crop) and crop the centre; where it is "squash",
    resize both sides to the size. `interpolation` with antialiasing. Then (pixel / 255 - mean) / std, rounded once to
    `dtype`.
    """

    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    interpolation: Interpolation
    crop: Annotated[float, Field(ge=_SMALLEST_CROP, le=1)]
    crop_mode: CropMode = "center"
    layout: Literal["NCHW", "NHWC"]
    dtype: Dtype


class TensorEntry(_Strict):
    name: Annotated[str, Field(min_length=1)]
    dtype: Dtype
    shape: Annotated[Many[Extent | Symbol], Field(min_length=1, max_length=8)]


class OutputEntry(TensorEntry):
    """`pool`: what logits and the pooled feature are of. `normed`: whether features went through the final norm."""

    pool: Pool | None = None
    normed: bool | None = None

    @model_validator(mode="after")
    def _is_an_output(self) -> OutputEntry:
        self.value()
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

    def value(self) -> Output:
        return Output.named(self.name, pool=self.pool, normed=self.normed is not False)

    @classmethod
    def of(cls, output: Output, shape: TensorSpec) -> OutputEntry:
        normed = output.normed if output.block is not None else None
        return cls(**dataclasses.asdict(shape), pool=output.pool, normed=normed)


class BatchEntry(_Strict):
    min: Extent
    opt: Extent
    max: Extent

    @model_validator(mode="after")
    def _in_order(self) -> BatchEntry:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"batch {self.min}:{self.opt}:{self.max} is not in order")
        return self


class DynamicEntry(_Strict):
    """A graph that takes any height and width up to `max` that are multiples of `multiple`.

    patch, prefix: pixels a patch's side, and tokens before the patches, by which a host sizes position inputs.
    """

    max: Size
    multiple: Extent
    patch: Extent
    prefix: Prefix = 1

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_release(cls, given: Any) -> Any:
        """Whose manifests had no patch: it was the multiple."""
        return {"patch": given["multiple"], **given} if isinstance(given, dict) and "multiple" in given else given

    def takes(self, height: int, width: int) -> bool:
        on_grid = height > 0 and width > 0 and height % self.multiple == 0 and width % self.multiple == 0
        return on_grid and height <= self.max[0] and width <= self.max[1]


class FileEntry(_Strict):
    """A file that serves an artifact or a reader: golden tensors, a layer report, weights, parts of position inputs."""

    kind: str
    path: FileName
    sha256: str = Sha256


class CensusEntry(_Strict):
    """What runs in one number format: nodes of a graph or kernels of an engine; of these products (matrix products and
    convolutions); bytes of a graph's weights, or of what an engine reads and writes in one inference where shapes are
    static.
    """

    format: str
    operations: Count
    products: Count
    bytes: Count


class ArtifactEntry(_Strict):
    """`targets`: compute capabilities an engine runs on. `options`: how it was built, where not by default. `remark`:
    why a second build may give other bytes. `files`: what must lie beside it. `form`: what all
    runtimes take, or the same numbers in the operators that one runtime is faster with: ONNX Runtime on a CPU, or
    OpenVINO. A host takes its runtime's own form, and otherwise the portable one, which is always there.

    `profiles`: an engine's optimization profiles by index, each for one of `resolutions`; empty for a static engine.
    """

    kind: Literal["onnx", "tensorrt", "tensorrt-rtx", "openvino"]
    path: FileName
    sha256: str = Sha256
    resolutions: Annotated[Many[Size], Field(min_length=1)]
    batch: BatchEntry
    precision: str
    form: Form = "portable"
    inputs: Annotated[Many[TensorEntry], Field(min_length=1)]
    outputs: Annotated[Many[OutputEntry], Field(min_length=1)]
    built_with: str
    targets: Many[str]
    files: Many[FileEntry] = ()
    dynamic: DynamicEntry | None = None
    profiles: Many[Size] = ()
    census: Many[CensusEntry] = ()
    options: dict[str, str | int | bool] = {}
    remark: str | None = None

    def takes(self, height: int, width: int) -> bool:
        """An engine takes the sizes of its profiles only, its graph any."""
        any_size = self.dynamic if self.kind == "onnx" else None
        return (height, width) in self.resolutions or (any_size is not None and any_size.takes(height, width))


class HistogramEntry(_Strict):
    """How far the numbers of an output are off: `counts[i]` of them by 2^(lowest + i) of the reference's root mean
    square or more, but less than twice that; `exact` of them by nothing.
    """

    lowest: Annotated[int, Field(ge=-4096, le=4096)]
    counts: Annotated[Many[Count], Field(max_length=8192)]
    exact: Count


class ParityEntry(_Strict):
    """Of one output. `metrics` and `tolerance` by name; `passed` follows from them."""

    artifact: str
    output: str = "logits"
    resolution: Size
    batch: Extent
    inputs: str
    reference: str
    runtime: str
    metrics: dict[str, float | Count | None]
    tolerance: dict[str, Finite]
    passed: bool
    histogram: HistogramEntry | None = None

    @model_validator(mode="after")
    def _passed_follows(self) -> ParityEntry:
        if missing := {"relative", "cosine"} - self.tolerance.keys():
            raise ValueError(f"tolerance lacks {', '.join(sorted(missing))}")
        if self.tolerance["relative"] <= 0:
            raise ValueError(f"a tolerance of {self.tolerance['relative']} allows nothing")
        relative, cosine = self.metrics.get("relative"), self.metrics.get("cosine")
        within = relative is not None and cosine is not None and self.metrics.get("not_finite") == 0
        within = within and relative <= self.tolerance["relative"] and cosine >= self.tolerance["cosine"]  # type: ignore[operator]
        if within != self.passed:
            raise ValueError(f"passed is {self.passed}, its metrics and tolerance say {within}")
        return self


class CoordinatesEntry(_Strict):
    """Where a token is along an axis (`models.spec.Coordinates`)."""

    offset: Annotated[float, Field(ge=-1e6, le=1e6)]
    reference: Side | None
    centred: bool


class HeadEntry(_Strict):
    """Frequencies of some pairs of a head: its angle at a token is x · place along a row + y · place along a column.

    `head`: None where all heads of the block turn alike. `block`: None for what an axial model's heads would do.
    """

    block: int | None
    head: int | None
    x: Many[Frequency]
    y: Many[Frequency]


class RotaryEntry(_Strict):
    """A sample of how the model turns its queries and keys, to draw and to look at: hosts take tables from elsewhere.

    rule   in words
    grid   rows and columns of the tokens that see one another, at the first size
    pairs  which pairs of a head `heads` are of
    """

    rule: str
    coordinates: CoordinatesEntry
    grid: Size
    pairs: Many[Count]
    heads: Many[HeadEntry]

    @model_validator(mode="after")
    def _a_frequency_a_pair(self) -> RotaryEntry:
        for head in self.heads:
            if not len(head.x) == len(head.y) == len(self.pairs):
                raise ValueError(f"a head has {len(head.x)} and {len(head.y)} frequencies of {len(self.pairs)} pairs")
        if (
            math.prod(self.grid) > _MOST_TOKENS
            or math.prod(self.grid) * len(self.pairs) * len(self.heads) > _MOST_DRAWN
        ):
            raise ValueError(
                f"{len(self.heads)} heads over a grid of {self.grid[0]}x{self.grid[1]} are too many to draw"
            )
        return self


class Manifest(_Strict):
    """`output`: what was asked for, such as "logits" or "cls,features:5,11"; artifacts list their outputs by name.

    patch     pixels a patch's side; prefix: tokens before the patches, in `tokens` (manifests of before had neither)
    rotary    of a model that turns, some of its frequencies
    choices   what was chosen for the user where the request left it open
    notes     what was measured and built on the way

    `request`: the options that the bundle was made with, files by their names only; by it a later run of the same
    matrix knows a bundle that is done.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    rope: Literal["baked", "dynamic", "inputs"]
    output: str
    classes: Annotated[int, Field(ge=0, le=2**31 - 1)]
    patch: Extent | None = None
    prefix: Prefix | None = None
    weights: WeightsEntry
    preprocess: PreprocessEntry
    artifacts: Many[ArtifactEntry]
    parity: Many[ParityEntry]
    files: Many[FileEntry]
    versions: dict[str, str]
    rotary: RotaryEntry | None = None
    choices: Many[str] = ()
    notes: Many[str] = ()
    request: dict[str, str] | None = None

    @model_validator(mode="after")
    def _every_graph_was_compared(self) -> Manifest:
        compared = {each.artifact for each in self.parity}
        missing = [each.path for each in self.artifacts if each.kind == "onnx" and each.path not in compared]
        if missing:
            raise ValueError(f"no parity for {', '.join(missing)}")
        if not any(each.kind == "onnx" for each in self.artifacts):
            raise ValueError("no ONNX graph among the artifacts")
        return self

    def write(self, bundle: Path) -> None:
        files.write(bundle / MANIFEST, (self.model_dump_json(indent=2) + "\n").encode())

    def all_files(self) -> list[tuple[str, str]]:
        """(path, SHA-256) of every file of the bundle but this one."""
        entries: list[ArtifactEntry | FileEntry] = [
            *self.artifacts,
            *(each for artifact in self.artifacts for each in artifact.files),
            *self.files,
        ]
        return [(entry.path, entry.sha256) for entry in entries]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A written bundle; `remark` says why something that could have been expected is not in it. `kept`: an earlier run
    had written it.
    """

    path: Path
    manifest: Manifest
    remark: str | None
    kept: bool = False


def digest(bundle: Path) -> str:
    """SHA-256 of the manifest, which has every other file's: it stands for the whole bundle."""
    return hashlib.sha256(_content(bundle)).hexdigest()


def _content(bundle: Path) -> bytes:
    path = bundle / MANIFEST
    if not os.path.lexists(path):
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}.")
    try:
        return files.read(path, most=_MOST_BYTES)
    except OSError as error:
        raise BundleError(f"can't read {path}: {error.strerror or error}.") from error


def read(bundle: Path) -> Manifest:
    """The validated manifest of a bundle; raises BundleError that names the first wrong field."""
    path, content = bundle / MANIFEST, _content(bundle)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{path} is not a manifest of schema {SCHEMA_VERSION}: {first_fault(error)}.") from error
