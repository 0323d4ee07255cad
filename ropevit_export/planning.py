"""What an export is going to do, before minutes of work: builders, engines, the folder, what is chosen for the user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ropevit_export.errors import BackendError, UsageError
from ropevit_export.images import calibration
from ropevit_export.request import EngineSpec, Request
from ropevit_export.values import Checkpoint, IoSpec, Profile, Weights

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder

DEFAULT_FOLDER = Path("engines")
RANDOM_SUFFIX = "-random"
LOGITS = "logits"
_POOLS = {"token": "the class token", "avg": "the mean over patches", "map": "attention pooling"}
_POOLED = {
    "pooled": "pooled is {}, as the authors take it: --pool chooses",
    LOGITS: "the head is fed {}, as timm trains heads of this model: --pool chooses",
}


def stage_count(request: Request) -> int:
    """How often `export` calls its `progress`, at most."""
    graphs = request.graphs()
    return 1 + sum(2 + len(request.engines) + 2 * len(request.checked_sizes(io)) for io in graphs)


def makers(request: Request) -> tuple[list[Builder], str | None]:
    """Builders that can serve the request, and, where `auto` found none, a sentence why; before minutes of work."""
    from ropevit_export.backends.select import builders

    if request.calib is not None:
        # that there are any, and that they can be read
        calibration.pictures(request.calib, skip_unreadable=request.skip_unreadable)
    found, remark = builders(request.engines)
    if request.require_fused_attention and not found:
        raise BackendError(f"--require-fused-attention needs an engine, but {remark}.")
    used = frozenset[str]().union(*(maker.options for maker in found))
    for name, flag in request.engine_flags.items():
        if found and name not in used:
            names = ", ".join(maker.runtime for maker in found)
            raise UsageError(f"{flag} is of no use to the engine asked for, {names}: leave it out.")
    for maker in found:
        for io in request.graphs():
            maker.check(engine_spec(request, maker, io))
    return found, remark


def engine_spec(request: Request, maker: Builder, io: IoSpec) -> EngineSpec:
    sizes = () if io.is_static else request.named_sizes(io)
    return EngineSpec(
        runtime=maker.runtime,
        precision=request.precision,
        targets=request.targets if "targets" in maker.options else (),
        profiles=tuple(Profile.of(io, size, request.model.extents(size)) for size in sizes),
        options=request.engine_options.only(maker.options),
        require_fused_attention=request.require_fused_attention,
    )


def choices(request: Request, weights: Weights) -> list[str]:
    """What the request left open and was chosen for the user, as sentences."""
    model, said = request.model, []
    if request.skip_unreadable and (names := calibration.left_out(request.calib)):
        said.append(f"{len(names)} pictures of --calib can't be read and are left out: {', '.join(names[:6])}")
    if request.output is None and not model.classes:
        head = f", though the file has one of {weights.classes} classes" if weights.classes else ""
        said.append(f"the output is pooled: {model.short} is published without a head{head}")
    if request.pool is None and model.head_pool not in (None, model.pool):
        said += [_POOLED[output.name].format(_POOLS[output.pool]) for output in request.outputs if output.pool]
    return said


def final_folder(request: Request, checkpoint: Checkpoint, out: Path | None) -> Path:
    """A bundle of random weights says so in its name, unless both the folder and random weights were asked for."""
    final = out or DEFAULT_FOLDER / request.bundle_name
    keeps_name = checkpoint.trained or final.name.endswith(RANDOM_SUFFIX) or (out and request.weights == "random")
    return final if keeps_name else final.with_name(final.name + RANDOM_SUFFIX)
