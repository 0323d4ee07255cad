"""What a user asks for: valid, or an error that says what to change."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from ropevit_export.errors import UsageError
from ropevit_export.formats import EIGHT_BITS
from ropevit_export.models.spec import ModelSpec, Preprocess
from ropevit_export.values import (
    DTYPES,
    OUTPUT_KINDS,
    Dim,
    IoPrecision,
    IoSpec,
    Output,
    Pool,
    Precision,
    Profile,
    Resolution,
    RopeMode,
)

# Rows and columns of tokens.
Window = tuple[int, int]
# none: the target only · ampere-plus: every later generation as well · same-cc: all GPUs of the compute capability
Hardware = Literal["none", "ampere-plus", "same-cc"]


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


_PLAIN_OUTPUTS = tuple(kind for kind in OUTPUT_KINDS if kind != "features")
ONE_IMAGE = Dim(min=1, opt=1, max=1)

# The precisions whose graphs compute in a 16-bit format, and so may take and give it. With any other the graph computes
# in fp32, so rounding the input first only loses digits.
_COMPUTE_IN: dict[IoPrecision, tuple[Precision, ...]] = {"fp16": ("fp16", *EIGHT_BITS), "bf16": ("bf16",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call of the tool, whole."""

    model: ModelSpec
    resolutions: tuple[Resolution, ...]
    weights: str = "auto"
    weights_key: str | None = None
    revision: str | None = None
    rope: RopeMode = "baked"
    precision: Precision = "fp32"
    io_precision: IoPrecision = "fp32"
    calib: str | None = None
    batch: Dim = ONE_IMAGE
    engines: tuple[str, ...] = ("auto",)
    targets: tuple[str, ...] = ()
    engine_options: EngineOptions = EngineOptions()
    output: str | None = None
    pool: Pool | None = None
    features_raw: bool = False
    pixels: bool = False
    seed: int = 0
    require_fused_attention: bool = False
    window: Window | None = None
    single_file: bool = False
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise UsageError("no resolution: give at least one --res, such as --res 384.")
        if len(set(self.resolutions)) != len(self.resolutions):
            raise UsageError(f"resolution named twice: {', '.join(map(str, self.resolutions))}.")
        for resolution in self.resolutions:
            self.model.check(resolution)
        if self.revision and self.weights not in ("auto", "pretrained"):
            raise UsageError(f"--revision is of the hub, but the weights are {self.weights}: leave one out.")
        self._check_weights()
        self._check_precision()
        if self.revision and self.model.packaged:
            raise UsageError(f"--revision is of the hub, but {self.model.short} is in this package: leave it out.")
        if self.rope != "baked" and self.model.window_of is not None:
            raise UsageError(
                f"--rope {self.rope} is for ViTs without windows: those of {self.model.short} follow the size, so name "
                "its sizes with --res."
            )
        self._check_engines()
        self._check_outputs()

    @property
    def own_weights(self) -> bool:
        """Whether weights are a file of the user's."""
        return self.weights not in ("auto", "pretrained", "random")

    def _check_weights(self) -> None:
        if self.weights_key is not None and not self.own_weights:
            raise UsageError(
                f"--weights-key is for a file with several dictionaries, but the weights are {self.weights}."
            )
        if self.skip_unreadable and self.calib is None:
            raise UsageError("--skip-unreadable is for the pictures of --calib: add it, or leave both out.")
        if self.window is None:
            return
        if self.model.window_of is None:
            raise UsageError(f"--window is for Swin: attention of {self.model.short} sees all tokens.")
        for size in self.resolutions:
            if not self.model.takes_window(self.window, size):
                rows, columns = self.model.window(size)
                raise UsageError(
                    f"--window {_by(self.window)} does not divide the last map at {size}, {rows}x{columns} tokens: "
                    "needs a divisor of both sides."
                )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the graphs give; of a model without a head the pooled feature, if nothing was asked for."""
        return tuple(self._output(name) for name in _names(self.output or self.default_output))

    @property
    def default_output(self) -> str:
        return "logits" if self.model.classes else "pooled"

    def _output(self, name: str) -> Output:
        model = self.model
        pools = {"pooled": model.pool, "logits": model.head_pool or model.pool}
        pool = (self.pool or pools[name]) if name in pools else None
        return Output.named(name, pool=pool, normed=not self.features_raw)

    def _check_outputs(self) -> None:
        model, outputs = self.model, self.outputs
        names, kinds = [output.name for output in outputs], {output.kind for output in outputs}
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"--output names {', '.join(twice)} twice.")
        if "cls" in kinds and not model.class_token:
            raise UsageError(f"--output cls: {model.short} has no class token; pooled is its global feature.")
        if "features" in kinds and model.window_of is not None:
            raise UsageError(f"--output features is for ViTs without windows, {model.short} has them: take tokens.")
        beyond = [output.block for output in outputs if output.block is not None and output.block >= len(model.blocks)]
        if beyond:
            raise UsageError(
                f"--output features:{beyond[0]}: {model.short} has {len(model.blocks)} blocks, "
                f"0 to {len(model.blocks) - 1}."
            )
        if self.pool is not None and not kinds & {"logits", "pooled"}:
            raise UsageError(f"--pool is for logits and pooled, but --output is {self.output}: leave one out.")
        if self.pool is not None and self.pool not in model.pools:
            raise UsageError(f"--pool {self.pool}: {model.short} has only --pool {' or '.join(model.pools)}.")
        if self.features_raw and "features" not in kinds:
            raise UsageError("--features-raw is for --output features:…: add it, or leave both out.")

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
        if self.precision in EIGHT_BITS and self.calib is None:
            raise UsageError(f"--precision {self.precision} is measured on images of the job: give --calib DIR.")
        if self.calib is not None and self.precision not in EIGHT_BITS:
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
        noted["output"] = self.output or self.default_output
        noted["transform"] = str(self.model.transform)
        noted["hub"] = self.model.hub[0].repo.split("/")[0] if self.model.hub else ""  # whose repository comes first
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
                outputs=self.outputs,
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
            **asdict(self.model.transform),
            layout="NHWC" if self.pixels else "NCHW",
            dtype="uint8" if self.pixels else DTYPES[self.io_precision],
        )


def _names(text: str) -> list[str]:
    """`cls,features:5,11` → cls, features_5, features_11. Raises UsageError."""
    names: list[str] = []
    in_features = False
    for part in (part.strip() for part in text.split(",")):
        kind, colon, block = part.partition(":")
        if in_features and not colon and part.isascii() and part.isdigit():
            names.append(f"features_{int(part)}")
            continue
        in_features = kind == "features" and block.isascii() and block.isdigit()
        if in_features:
            names.append(f"features_{int(block)}")
        elif part in _PLAIN_OUTPUTS:
            names.append(part)
        else:
            raise UsageError(
                f"--output {text!r}: {part!r} is none of {', '.join(_PLAIN_OUTPUTS)} or features:BLOCK[,BLOCK…], "
                "such as features:2,5,8,11."
            )
    return names


def _by(window: Window) -> str:
    return "x".join(map(str, window))


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_option, value))
    if isinstance(value, ModelSpec):
        return value.name
    if isinstance(value, EngineOptions):
        return ",".join(f"{name}={given}" for name, given in value.given().items())
    text = "" if value is None else str(value)
    return Path(text).name if "/" in text or "\\" in text else text
