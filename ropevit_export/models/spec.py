"""A model as data: its names, and everything that its graph depends on besides weights and size. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ropevit_export.errors import UsageError
from ropevit_export.values import Resolution, TensorSpec

Family = Literal["deit", "swin"]
RopeKind = Literal["none", "axial", "mixed"]


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
