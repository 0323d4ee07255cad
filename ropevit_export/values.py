"""The nouns that cross a stage border. All frozen; a value that exists is valid.

    checkpoint → models → rope → trace → passes → backends → parity → bundle

Nothing here imports torch or a runtime.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ropevit_export.errors import UsageError
from ropevit_export.formats import FORMATS, IO_PRECISIONS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir
    import torch

    FloatArray = npt.NDArray[np.float32]
    # (cos, sin) of one block, each (tokens, heads or 1, head width / 2)
    Tables = tuple[FloatArray, FloatArray]
    # the same along x, each (columns, heads or 1, head width / 2), and along y, each (rows, …)
    Factors = tuple[Tables, Tables]
    Array = npt.NDArray[Any]
    # a module's state, by name
    State = Mapping[str, torch.Tensor]
    Arrays = Mapping[str, Array]

RopeMode = Literal["baked", "dynamic", "inputs"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
IoPrecision = Literal["fp32", "fp16", "bf16"]
# portable: for engines and everything else · onnxruntime, openvino: what that runtime is fast with · openvino-avx2: the
# same where a CPU has no AVX-512
Form = Literal["portable", "onnxruntime", "openvino", "openvino-avx2"]
OutputKind = Literal["logits", "pooled", "cls", "tokens", "features"]
OUTPUT_KINDS: tuple[OutputKind, ...] = ("logits", "pooled", "cls", "tokens", "features")
Pool = Literal["token", "avg", "map"]

FloatName = Literal["float32", "float16", "bfloat16"]
# As NumPy, torch and manifests call what graphs take and give.
DTYPES: dict[str, FloatName] = {name: cast("FloatName", FORMATS[name].numpy) for name in IO_PRECISIONS}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Resolution:
    """Image size in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"resolution {self.height}x{self.width} has no pixels: both sides must be at least 1.")

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """`384` or `256x352` (height x width)."""
        found = re.fullmatch(r"\s*(\d{1,6})(?:[xX](\d{1,6}))?\s*", text, re.ASCII)
        if not found:
            raise UsageError(f"resolution {text!r} is not a size: give N for a square or HxW, such as 384 or 256x352.")
        height, width = found.groups()
        return cls(height=int(height), width=int(width or height))

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dim:
    """An axis with its smallest, most usual and largest extent; static when all three agree."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(f"batch {self}: needs 1 <= min <= opt <= max, such as 4 or 1:8:32.")

    @classmethod
    def parse(cls, text: str) -> Dim:
        """`4` (static) or `1:8:32` (min:opt:max)."""
        if not re.fullmatch(r"\d{1,6}(:\d{1,6}:\d{1,6})?", text, re.ASCII):
            raise UsageError(f"batch {text!r} is neither N nor MIN:OPT:MAX, such as 4 or 1:8:32.")
        sizes = [int(part) for part in text.split(":")]
        low, opt, high = sizes * 3 if len(sizes) == 1 else sizes
        return cls(min=low, opt=opt, max=high)

    @property
    def is_static(self) -> bool:
        return self.min == self.max

    def __str__(self) -> str:
        return str(self.min) if self.is_static else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The dictionaries of named tensors that a file holds, and where they came from.

    `dictionaries`: by their place in the file, such as "state_dict"; "" is the file itself. `unread`: what stands
    where tensors could, by its place: what made it; `beside`: files of the same folder that could be weights too.
    `source` names a hub repository, a file (never its folder) or the
    random rule; `sha256` is of the file, of shards together as `machine.shards.combined` says, or of the tensors' bytes
    where there is no file. `seed`: what random weights were drawn from.
    """

    dictionaries: Mapping[str, Mapping[str, torch.Tensor]]
    source: str
    revision: str | None
    sha256: str
    trained: bool
    seed: int | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Of a checkpoint that holds one dictionary."""
        (only,) = self.dictionaries.values()
        return only


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's parameters under their official names, float32, complete and of the right shapes.

    Position tables (`pos_embed`, `relative_position_bias_table`) are the checkpoint's until `models.resize` makes them
    a resolution's. `embed_grid`: rows and columns of `pos_embed`. `window`: those of the windows that the file was
    trained with, where it says so, as bias tables do. `choices`: sentences on what was taken of a file that leaves a
    choice.
    """

    tensors: Mapping[str, torch.Tensor]
    classes: int
    embed_grid: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A graph's input or output: a `str` extent is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, extents: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its dynamic axes measured."""
        return tuple(extent if isinstance(extent, int) else extents[extent] for extent in self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One output of a graph; B batch, C width of the model.

    logits    (B, classes), of the feature that `pool` gives
    pooled    (B, C): the class token or the mean of the patch tokens, after the final norm
    cls       (B, C): the class token after the final norm
    tokens    (B, T, C): all tokens after the final norm, those before the patches first
    features  (B, C, rows, columns): the patch tokens behind `block`, 0-based, `normed` by the final norm or as they are
    """

    name: str
    kind: OutputKind
    pool: Pool | None = None
    block: int | None = None
    normed: bool = True

    @classmethod
    def named(cls, name: str, *, pool: Pool | None = None, normed: bool = True) -> Output:
        """`logits`, `pooled`, `cls`, `tokens` or `features_5`, which says the rest."""
        kind, _, block = name.partition("_")
        if kind not in OUTPUT_KINDS or (kind == "features") != block.isdigit():
            raise ValueError(f"{name!r} is no output of a graph")
        return cls(name=name, kind=kind, pool=pool, block=int(block) if block else None, normed=normed)


@dataclass(frozen=True, kw_only=True, slots=True)
class IoSpec:
    """What goes into a graph and what comes out of it.

    image   (B, 3, H, W), normalised; or with `pixels` (B, H, W, 3) uint8, raw RGB

    `resolution` is the size of a baked graph, the largest height and width of one that takes any size. `positions`:
    what the host fills beside the image, where `rope` is "inputs". `dtype`: of all these but raw pixels.
    """

    resolution: Resolution
    batch: Dim
    outputs: tuple[Output, ...]
    pixels: bool
    rope: RopeMode = "baked"
    positions: tuple[TensorSpec, ...] = ()
    dtype: str = "float32"

    @property
    def any_size(self) -> bool:
        return self.rope != "baked"

    @property
    def is_static(self) -> bool:
        return self.batch.is_static and not self.any_size

    @property
    def batch_extent(self) -> int | str:
        return self.batch.min if self.batch.is_static else "batch"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The image first."""
        return (self.image, *(replace(each, dtype=self.dtype) for each in self.positions))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.outputs)

    @property
    def image(self) -> TensorSpec:
        height: int | str = self.resolution.height
        width: int | str = self.resolution.width
        if self.any_size:
            height, width = "height", "width"
        if self.pixels:
            return TensorSpec(name="image", dtype="uint8", shape=(self.batch_extent, height, width, 3))
        return TensorSpec(name="image", dtype=self.dtype, shape=(self.batch_extent, 3, height, width))


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRecord:
    """What one pass did to a graph."""

    name: str
    fired: bool
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """An ONNX model on its way through the passes."""

    model: ir.Model
    io: IoSpec
    history: tuple[PassRecord, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A size that a graph with dynamic axes is optimised for: the shape of every input at the smallest, the usual and
    the largest batch.
    """

    resolution: Resolution
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]

    @classmethod
    def of(cls, io: IoSpec, resolution: Resolution, extents: Mapping[str, int]) -> Profile:
        """`extents`: what the dynamic axes but the batch measure at that size."""
        batches = (io.batch.min, io.batch.opt, io.batch.max)
        shapes = {each.name: tuple(each.sized({**extents, "batch": size}) for size in batches) for each in io.inputs}
        return cls(resolution=resolution, shapes=shapes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A built engine and what its builder said of it.

    files       the engine, then what must lie beside it
    layers      one JSON object a kernel (`backends.layer_report`)
    promotions  formats that the device computes in another: an fp16 graph's products on a CPU are float32's
    remark      why a second build may give other bytes; None where it does not
    """

    files: tuple[Path, ...]
    layers: tuple[Mapping[str, object], ...]
    built_with: str
    targets: tuple[str, ...]
    promotions: Mapping[str, str] = field(default_factory=dict)
    remark: str | None = None
