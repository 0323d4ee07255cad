"""The nouns that cross a stage border. All frozen; a value that exists is valid.

    checkpoint → models → rope → trace → passes → backends → parity → bundle

Nothing here imports torch or a runtime.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ropevit_export.errors import UsageError

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
    Arrays = Mapping[str, Array]

Family = Literal["deit", "swin"]
RopeKind = Literal["none", "axial", "mixed"]
RopeMode = Literal["baked", "dynamic", "inputs"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
IoPrecision = Literal["fp32", "fp16", "bf16"]
# portable: for engines, OpenVINO and others · onnxruntime: what ONNX Runtime's CPU provider is fast with
Form = Literal["portable", "onnxruntime"]
Output = Literal["logits", "cls", "tokens"]
# none: the target only · ampere-plus: every later generation as well · same-cc: all GPUs of the compute capability
Hardware = Literal["none", "ampere-plus", "same-cc"]

# As NumPy, torch and manifests call them.
DTYPES: dict[str, Literal["float32", "float16", "bfloat16"]]
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
class RopeSpec:
    """How a model turns its queries and keys.

    `theta` is the base of axial frequencies; mixed models learn theirs, and start from it only.
    """

    kind: RopeKind
    theta: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One weights file on the hub."""

    repo: str
    filename: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model: its names, and everything its graph depends on besides weights and size.

    `patch`: its side in pixels. `dims`, `depths` and `heads` have one entry a stage; DeiT has one stage. `classes`: of
    the published weights. `packaged`: of an example whose weights are in this package, their SHA-256.
    """

    name: str
    short: str
    timm: str | None
    family: Family
    rope: RopeSpec
    ape: bool
    patch: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    hub: tuple[HubFile, ...]
    classes: int = 1000
    packaged: str | None = None

    @property
    def multiple(self) -> int:
        """Pixels that height and width must be a multiple of: the patch, or Swin's smallest window."""
        return self.patch if self.family == "deit" else 32

    @property
    def head_dim(self) -> int:
        return self.dims[0] // self.heads[0]

    @property
    def norm_eps(self) -> float:
        return 1e-6 if self.family == "deit" else 1e-5

    @property
    def resize_ratio(self) -> float:
        """Crop size over resized size in the authors' evaluation: DeiT-III resizes to the size itself."""
        return 1.0 if self.family == "deit" else 224 / 256

    def grid(self, resolution: Resolution) -> tuple[int, int]:
        """Rows and columns of patches."""
        return resolution.height // self.patch, resolution.width // self.patch

    def window(self, resolution: Resolution) -> tuple[int, int]:
        """Swin's window, rows and columns: size // 32. Non-square ones are this project's extension."""
        return resolution.height // 32, resolution.width // 32

    def extents(self, resolution: Resolution) -> dict[str, int]:
        """What the dynamic axes of a DeiT's graph measure at a size; `tokens` counts the class token."""
        rows, columns = self.grid(resolution)
        patches = rows * columns
        return {"height": resolution.height, "width": resolution.width, "patches": patches, "tokens": 1 + patches}

    @property
    def position_inputs(self) -> tuple[TensorSpec, ...]:
        """What a host fills where a DeiT's positions are inputs: tables if it turns, an embedding if it has one.

        cos, sin    (one for all blocks or one a block, tokens, one for all heads or one a head, half the head's width)
        pos_embed   (patches, width of the model), resized to the grid
        """
        tables, heads = (self.depths[0], self.heads[0]) if self.rope.kind == "mixed" else (1, 1)
        shape = (tables, "tokens", heads, self.head_dim // 2)
        wanted = [TensorSpec(name=name, dtype="float32", shape=shape) for name in ("cos", "sin")]
        wanted = wanted if self.rope.kind != "none" else []
        if self.ape:
            wanted.append(TensorSpec(name="pos_embed", dtype="float32", shape=("patches", self.dims[0])))
        return tuple(wanted)

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """(prefix of its parameters' names, stage) of every block, in order."""
        if self.family == "deit":
            return tuple((f"blocks.{block}.", 0) for block in range(self.depths[0]))
        return tuple(
            (f"layers.{stage}.blocks.{block}.", stage)
            for stage, depth in enumerate(self.depths)
            for block in range(depth)
        )

    def merges_after(self, index: int) -> bool:
        """Does a Swin's merge follow that one of `blocks`?"""
        stages = [stage for _, stage in self.blocks]
        return index + 1 < len(stages) and stages[index + 1] != stages[index]

    def check(self, resolution: Resolution) -> None:
        """Raise unless the size suits the patch or window grid, naming the nearest sizes that do."""
        unit = "patch" if self.family == "deit" else "window grid"
        for axis, size in (("height", resolution.height), ("width", resolution.width)):
            low = size // self.multiple * self.multiple
            if size != low:
                nearest = f"{low} and {low + self.multiple}" if low else f"{self.multiple}"
                raise UsageError(
                    f"resolution {resolution.height}x{resolution.width} does not suit {unit} {self.multiple}: "
                    f"{axis} must be a multiple of {self.multiple}; nearest: {nearest}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Named tensors as a file holds them, and where they came from.

    `source` names a hub repository, a file (never its folder) or the random rule; `sha256` is of the file,
    or of the tensors' bytes where there is no file.
    """

    tensors: Mapping[str, torch.Tensor]
    source: str
    revision: str | None
    sha256: str
    trained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A model's parameters under their official names, float32, complete and of the right shapes.

    Position tables (`pos_embed`, `relative_position_bias_table`) are the checkpoint's until `models.resize` makes them
    a resolution's.
    """

    tensors: Mapping[str, torch.Tensor]
    classes: int


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
class IoSpec:
    """What goes into a graph and what comes out of it.

    image   (B, 3, H, W), normalised; or with `pixels` (B, H, W, 3) uint8, raw RGB
    logits  (B, classes) · cls (B, features): the pooled feature · tokens (B, T, features): all normalised tokens

    `resolution` is the size of a baked graph, the largest height and width of one that takes any size. `positions`:
    what the host fills beside the image, where `rope` is "inputs". `dtype`: of all these but raw pixels.
    """

    resolution: Resolution
    batch: Dim
    output: Output
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
    def of(cls, spec: ModelSpec, io: IoSpec, resolution: Resolution) -> Profile:
        extents = spec.extents(resolution)
        batches = (io.batch.min, io.batch.opt, io.batch.max)
        shapes = {each.name: tuple(each.sized({**extents, "batch": size}) for size in batches) for each in io.inputs}
        return cls(resolution=resolution, shapes=shapes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingCache:
    """What TensorRT measured of its kernels in earlier builds. With `sha256`: of these bytes only, and nothing new."""

    path: Path
    sha256: str | None

    @classmethod
    def parse(cls, text: str) -> TimingCache:
        """`FILE`, or `FILE@SHA256`, which pins it."""
        path, at, digest = text.rpartition("@")
        if not at:
            return cls(path=Path(text), sha256=None)
        if not path or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"--timing-cache {text!r} is neither FILE nor FILE@SHA256 with 64 hexadecimal digits.")
        return cls(path=Path(path), sha256=digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How engines are built, beside target and precision. What a builder has no use for, it refuses.

    workspace               MB of scratch memory that a kernel may take; None: the library's default, all of the GPU's
    hardware_compatibility  GPUs beyond the target's own
    version_compatible      later releases of the library may run the plan
    strip_weights           out of the plan: they are put back from the ONNX file on the target
    refit                   weights may be exchanged for others of the same shapes
    tf32                    float32 products may be computed with 10-bit mantissas
    """

    workspace: int | None = None
    hardware_compatibility: Hardware = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    tf32: bool = False
    timing_cache: TimingCache | None = None

    def given(self) -> dict[str, str | int | bool]:
        """What differs from the defaults; of a timing cache its hash, never where it lies."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                found[each.name] = (value.sha256 or "not pinned") if isinstance(value, TimingCache) else value
        return found

    def only(self, names: Collection[str]) -> EngineOptions:
        """Those of some names; the others at their defaults."""
        return EngineOptions(**{each.name: getattr(self, each.name) for each in fields(self) if each.name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What to build from a graph: the runtime, and compute capabilities such as "89" (8.9, Ada).

    `profiles`: empty for a static graph.
    """

    runtime: str
    precision: Precision
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    options: EngineOptions = EngineOptions()
    require_fused_attention: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A built engine and what its builder said of it.

    files    the engine, then what must lie beside it
    layers   one JSON object a kernel (`backends.layer_report`)
    lifts    formats that the device computes in another: an fp16 graph's products on a CPU are float32's
    remark   why a second build may give other bytes; None where it does not
    """

    files: tuple[Path, ...]
    layers: tuple[Mapping[str, object], ...]
    built_with: str
    targets: tuple[str, ...]
    lifts: Mapping[str, str] = field(default_factory=dict)
    remark: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """The authors' evaluation transform, and which part of it the graph does itself."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop: float
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16", "bfloat16", "uint8"]


# The precisions whose graphs compute in a 16-bit format, and so may take and give it. With any other, what the host
# rounds is computed in a format that could have held it.
_COMPUTE_IN: dict[IoPrecision, tuple[Precision, ...]] = {"fp16": ("fp16", "int8", "fp8"), "bf16": ("bf16",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call of the tool, whole."""

    model: ModelSpec
    resolutions: tuple[Resolution, ...]
    weights: str = "auto"
    revision: str | None = None
    rope: RopeMode = "baked"
    precision: Precision = "fp32"
    io_precision: IoPrecision = "fp32"
    calib: str | None = None
    batch: Dim = Dim(min=1, opt=1, max=1)
    engines: tuple[str, ...] = ("auto",)
    targets: tuple[str, ...] = ()
    engine_options: EngineOptions = EngineOptions()
    output: Output = "logits"
    pixels: bool = False
    seed: int = 0
    require_fused_attention: bool = False

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise UsageError("no resolution: give at least one --res, such as --res 384.")
        if len(set(self.resolutions)) != len(self.resolutions):
            raise UsageError(f"resolution named twice: {', '.join(map(str, self.resolutions))}.")
        for resolution in self.resolutions:
            self.model.check(resolution)
        if self.revision and self.weights not in ("auto", "pretrained"):
            raise UsageError(f"--revision is of the hub, but the weights are {self.weights}: leave one out.")
        self._check_precision()
        if self.revision and self.model.packaged:
            raise UsageError(f"--revision is of the hub, but {self.model.short} is in this package: leave it out.")
        if self.rope != "baked" and self.model.family == "swin":
            raise UsageError(
                f"--rope {self.rope} is for DeiT models: Swin's window follows the size, so name its sizes with --res."
            )
        self._check_engines()

    def _check_engines(self) -> None:
        if set(self.engines) == {"none"} and self.engine_flags:
            flags = ", ".join(self.engine_flags.values())
            raise UsageError(f"{flags} is for engines, but --engine none builds none: leave one out.")

    @property
    def engine_flags(self) -> dict[str, str]:
        """What was asked of engines: names as builders know them, and as they stand on the command line."""
        own = {"targets": self.targets, "require_fused_attention": self.require_fused_attention}
        names = [*(name for name, value in own.items() if value), *self.engine_options.given()]
        return {name: "--sm" if name == "targets" else f"--{name.replace('_', '-')}" for name in names}

    def _check_precision(self) -> None:
        if self.precision in ("int8", "fp8") and self.calib is None:
            raise UsageError(f"--precision {self.precision} is measured on images of the job: give --calib DIR.")
        if self.calib is not None and self.precision not in ("int8", "fp8"):
            raise UsageError(f"--calib is for int8 and fp8, but the precision is {self.precision}: leave one out.")
        if self.io_precision != "fp32" and self.precision not in _COMPUTE_IN[self.io_precision]:
            raise UsageError(
                f"--io-precision {self.io_precision} is for graphs that compute in it, but the precision is "
                f"{self.precision}: needs --precision {' or '.join(_COMPUTE_IN[self.io_precision])}."
            )

    @property
    def bundle_name(self) -> str:
        sizes = "_".join(map(str, self.resolutions))
        return f"{self.model.short}-{sizes}-{self.precision}"

    def options(self) -> dict[str, str]:
        """Every field as text, files by their names only: what a bundle says of the request that it was made from."""
        noted = {field.name: _option(getattr(self, field.name)) for field in fields(self)}
        return noted | {"revision": self.revision or ""}  # a branch of the hub may hold a slash

    def graphs(self) -> tuple[IoSpec, ...]:
        """One graph a size, or one for all sizes up to the largest height and width named."""
        sizes = self.resolutions
        if self.rope != "baked":
            height, width = max(size.height for size in sizes), max(size.width for size in sizes)
            sizes = (Resolution(height=height, width=width),)
        positions = self.model.position_inputs if self.rope == "inputs" else ()
        return tuple(
            IoSpec(
                resolution=size,
                batch=self.batch,
                output=self.output,
                pixels=self.pixels,
                rope=self.rope,
                positions=positions,
                dtype=DTYPES[self.io_precision],
            )
            for size in sizes
        )

    def named_sizes(self, io: IoSpec) -> tuple[Resolution, ...]:
        """The sizes asked for that a graph serves."""
        return self.resolutions if io.any_size else (io.resolution,)

    def checked_sizes(self, io: IoSpec) -> tuple[Resolution, ...]:
        """The sizes that parity is measured at: those named and, where any size goes, one that nobody named."""
        if not io.any_size:
            return (io.resolution,)
        rows, columns = self.model.grid(io.resolution)
        unit = self.model.multiple
        other = Resolution(height=max(1, rows // 2) * unit, width=max(1, columns * 3 // 4) * unit)
        return tuple(dict.fromkeys((*self.resolutions, other)))

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            interpolation="bicubic",
            crop=self.model.resize_ratio,
            layout="NHWC" if self.pixels else "NCHW",
            dtype="uint8" if self.pixels else DTYPES[self.io_precision],
        )


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_option, value))
    if isinstance(value, ModelSpec):
        return value.name
    if isinstance(value, EngineOptions):
        return ",".join(f"{name}={given}" for name, given in value.given().items())
    text = "" if value is None else str(value)
    return Path(text).name if "/" in text or "\\" in text else text
