"""A model as data: its names, and everything that its graph depends on besides weights and size. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ropevit_export.errors import UsageError
from ropevit_export.values import Pool, Resolution, TensorSpec

# The module of `models` and the deploy form of `trace` that know a model's parameters and computation.
Family = Literal["vit", "swin"]
# none · axial: every pair of channels turns with one coordinate · mixed: with both, by learned frequencies
RopeKind = Literal["none", "axial", "mixed"]
# Which channels of a head turn together in a checkpoint: 2p and 2p + 1, or p and p + K/2.
PairLayout = Literal["adjacent", "half"]
# packed: gate and value are one matrix in a checkpoint, the gate first
Mlp = Literal["gelu", "swiglu", "packed_swiglu"]
Norm = Literal["layer", "rms"]
# Which of q, k and v have a bias in a checkpoint. "optional": q and v, if the file has them.
QkvBias = Literal["qkv", "qv", "optional", "none"]
# Which of a block's two branches are scaled, channel by channel.
LayerScale = Literal["both", "attention", "none"]

Interpolation = Literal["bicubic", "bilinear"]
CropMode = Literal["center", "squash"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """What is done to an image before a model sees it.

    crop       the size cut from the centre over the size that the short side is resized to
    crop_mode  center: as `crop` says, keeping proportions · squash: both sides resized to the size itself
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop: float
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        if not all(deviation > 0 for deviation in self.std):
            raise UsageError(f"std {self.std} has a number that is not above 0: images are divided by it.")
        if not 0 < self.crop <= 1:
            raise UsageError(
                f"crop {self.crop:g} is not above 0 and at most 1: it is the share of the side that is kept."
            )

    def __str__(self) -> str:
        means, deviations = (",".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        cut = "squash" if self.crop_mode == "squash" else f"crop {self.crop:.4g}"
        return f"mean {means}, std {deviations}, {self.interpolation}, {cut}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess(Transform):
    """A transform, and what the graph takes: with uint8 it normalises by itself."""

    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16", "bfloat16", "uint8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinates:
    """Where token j of n along an axis is, in the unit that frequencies are radians of.

    j + offset · with a reference: (j + offset) · reference / n · centred: 2π ((2j + 1) / n - 1)
    """

    offset: float = 0.0
    reference: int | None = None
    centred: bool = False

    @property
    def follow_extent(self) -> bool:
        """Whether they depend on n: the table of a smaller grid is then no slice of a larger one's."""
        return self.centred or self.reference is not None


INDEX = Coordinates()


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeSpec:
    """How a model turns its queries and keys.

    theta        pair i of an axis' Q = K/4 has the frequency theta^(-i/Q); mixed models learn theirs, and start from it
    first        which coordinate the first half of the pairs turns with, where the kind is axial
    """

    kind: RopeKind
    theta: float
    layout: PairLayout = "adjacent"
    first: Literal["columns", "rows"] = "columns"
    coordinates: Coordinates = INDEX

    def describe(self) -> str:
        """In a line, for people."""
        if self.kind == "none":
            return "none"
        if self.kind == "mixed":
            return f"mixed, learned from theta {self.theta:g}"
        where = self.coordinates
        if where.centred:
            return f"axial, theta {self.theta:g}, centred on the grid"
        scaled = "" if where.reference is None else f", scaled to a grid of {where.reference}"
        return f"axial, theta {self.theta:g}, from {where.offset:g}{scaled}"

    def magnitudes(self, head_dim: int) -> tuple[float, ...]:
        """The frequencies of an axis' K/4 pairs."""
        quarter = head_dim // 4
        return tuple(self.theta ** -(pair / quarter) for pair in range(quarter))


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One weights file on the hub. `gated`: the hub asks for the licence to be accepted first."""

    repo: str
    filename: str
    gated: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model: its names, and everything its graph depends on besides weights and size.

    timm, tag         timm's name, and of the weights there: timm/<name>.<tag>
    patch             its side in pixels
    dims, depths, heads   one entry a stage; an isotropic ViT has one stage
    window_of         pixels a token of a window: the window is size // window_of; None: attention sees all tokens
    own_window        rows and columns of the windows that a file was trained with, at the sizes that they divide
    class_token, registers   tokens before the patches, in this order; they don't turn
    ape               absolute embedding of patches, on a grid of `ape_grid` a side in the published file
    ape_prefix        it has entries of the tokens before the patches too, which come first and are never resized
    ape_resize        how the authors resize it to another grid, without antialiasing
    qkv_split         q, k and v are matrices of their own in a checkpoint
    kv_heads          of each block, where keys and values may have fewer heads than queries
    qk_norm           queries and keys are normalised head by head, before they turn
    attention_norm, mlp_norm   before attention's projection and before the MLP's second layer ("sub-LN")
    hidden            width of the MLP; None: four times the model's
    norm, norm_eps    of every norm
    pre_norm          before the first block; the patch convolution then has no bias
    final_norm        of all tokens, behind the last block
    pooled_norm       of the pooled feature (timm's `fc_norm`)
    pool              the authors' global feature: class token, mean of the patches, or attention pooling (`map`)
    map_heads         of attention pooling: a learned query asks all tokens, an MLP follows. None: the model has none
    map_hidden        width of that MLP; None: four times the model's
    head_pool         what a head reads, where a fine-tuned model is usually trained on another feature
    classes           of the published weights; 0: no head
    size              height and width in pixels that the published weights are for
    transform         the authors' evaluation transform
    licence           of the published weights
    packaged          of an example whose weights are in this package, their SHA-256
    """

    name: str
    short: str
    timm: str | None
    tag: str | None
    family: Family
    rope: RopeSpec
    patch: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    hub: tuple[HubFile, ...]
    transform: Transform
    multiple: int
    window_of: int | None = None
    own_window: tuple[int, int] | None = None
    class_token: bool = True
    registers: int = 0
    ape: bool = False
    ape_grid: int = 14
    ape_prefix: bool = False
    ape_resize: Interpolation = "bicubic"
    layer_scale: LayerScale = "both"
    qkv_bias: QkvBias = "qkv"
    qkv_split: bool = False
    kv_heads: tuple[int, ...] | None = None
    qk_norm: bool = False
    attention_norm: bool = False
    mlp: Mlp = "gelu"
    mlp_norm: bool = False
    hidden: int | None = None
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    pre_norm: bool = False
    final_norm: bool = True
    pooled_norm: bool = False
    pool: Pool = "token"
    map_heads: int | None = None
    map_hidden: int | None = None
    head_pool: Pool | None = None
    classes: int = 1000
    size: tuple[int, int] = (224, 224)
    licence: str = "apache-2.0"
    packaged: str | None = None

    @property
    def head_dim(self) -> int:
        return self.dims[0] // self.heads[0]

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.registers

    @property
    def pools(self) -> tuple[Pool, ...]:
        """What its tokens can be pooled by."""
        token: tuple[Pool, ...] = ("token",) if self.class_token else ()
        return (*token, "avg", "map") if self.map_heads else (*token, "avg")

    @property
    def embedded_prefix(self) -> int:
        """Tokens before the patches that the absolute embedding has entries of."""
        return self.prefix if self.ape and self.ape_prefix else 0

    def mlp_width(self, stage: int) -> int:
        return self.hidden or 4 * self.dims[stage]

    def grid(self, resolution: Resolution) -> tuple[int, int]:
        """Rows and columns of patches."""
        return resolution.height // self.patch, resolution.width // self.patch

    def window(self, resolution: Resolution) -> tuple[int, int]:
        """Rows and columns of tokens that see one another: a window, or the whole grid.

        Windows that are not square are this project's extension.
        """
        if self.window_of is None:
            return self.grid(resolution)
        if self.own_window is not None and self.takes_window(self.own_window, resolution):
            return self.own_window
        return resolution.height // self.window_of, resolution.width // self.window_of

    def takes_window(self, window: tuple[int, int], resolution: Resolution) -> bool:
        """Whether every stage's map is whole windows: the last one's is the smallest."""
        last = (side >> len(self.depths) - 1 for side in self.grid(resolution))
        return all(side % extent == 0 for side, extent in zip(last, window, strict=True))

    def extents(self, resolution: Resolution) -> dict[str, int]:
        """What the dynamic axes of a graph measure at a size; `tokens` counts those before the patches too."""
        rows, columns = self.grid(resolution)
        patches = rows * columns
        return {
            "height": resolution.height,
            "width": resolution.width,
            "rows": rows,
            "columns": columns,
            "patches": patches,
            "tokens": self.prefix + patches,
        }

    @property
    def position_inputs(self) -> tuple[TensorSpec, ...]:
        """What a host fills where positions are inputs: tables if the model turns, an embedding if it has one.

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
        staged = len(self.depths) > 1
        return tuple(
            (f"layers.{stage}.blocks.{block}." if staged else f"blocks.{block}.", stage)
            for stage, depth in enumerate(self.depths)
            for block in range(depth)
        )

    def merges_after(self, index: int) -> bool:
        """Does a Swin's merge follow that one of `blocks`?"""
        stages = [stage for _, stage in self.blocks]
        return index + 1 < len(stages) and stages[index + 1] != stages[index]

    def check(self, resolution: Resolution) -> None:
        """Raise unless the size suits the patch or window grid, naming the nearest sizes that do."""
        unit = "patch" if self.window_of is None else "window grid"
        for axis, size in (("height", resolution.height), ("width", resolution.width)):
            low = size // self.multiple * self.multiple
            if size != low:
                nearest = f"{low} and {low + self.multiple}" if low else f"{self.multiple}"
                raise UsageError(
                    f"resolution {resolution.height}x{resolution.width} does not suit {unit} {self.multiple}: "
                    f"{axis} must be a multiple of {self.multiple}; nearest: {nearest}."
                )
