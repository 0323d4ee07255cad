"""`tune BUNDLE`: every way that this machine has to run a bundle, compared with the reference, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ropevit_export.backends.select import ENGINES, RUNNERS
from ropevit_export.bundle import manifest
from ropevit_export.errors import BackendError, RopevitError
from ropevit_export.machine import hardware
from ropevit_export.machine.files import sha256
from ropevit_export.runtime import load
from ropevit_export.tuned import Goal, Row, Setting, Tuned, candidates, this_machine, version_of, write
from ropevit_export.values import Resolution
from ropevit_export.verbs import bench
from ropevit_export.verbs.bench import Contender
from ropevit_export.verbs.check import replay

# A setting this near to the fastest is as fast; the simplest of them, which stands first, is taken.
_SAME = 1.02


def tune(
    bundle: Path,
    *,
    goal: Goal = "latency",
    backends: Sequence[str] = (),
    resolution: Resolution | None = None,
    batch: int = 1,
    rounds: int = 15,
    progress: Callable[[str], None] = lambda stage: None,
) -> Tuned:
    """Try, time, and write `tuned.json` into the bundle. Default backends: those that can run it here.

    A setting is timed only where its answers to the golden inputs are within the bundle's own limits: they are what was
    asked for at export, whatever OpenVINO computes in. Raises BackendError where none is left.
    """
    listed = manifest.read(bundle)
    size = resolution or load(bundle).sizes[0]
    machine = this_machine()
    asked = tuple(backends) or _runnable(listed)
    rows: dict[Setting, Row] = {}
    for setting in candidates(listed, asked, goal, machine.features, machine.cores or 1):
        progress(f"answers of {setting.name}")
        rows[setting] = _tried(bundle, listed, setting, size, named=bool(backends))
    left = [setting for setting, row in rows.items() if not row.reason]
    if not left:
        reasons = "; ".join(f"{setting.name}: {row.reason}" for setting, row in rows.items())
        raise BackendError(f"nothing runs {bundle.name} at {size} within its limits here: {reasons}.")
    for timing in bench.bench(
        [Contender.of(bundle, setting) for setting in left],
        resolution=size,
        batches=(batch,),
        rounds=rounds,
        progress=progress,
    ).timings:
        setting = next(each for each in left if each.name == timing.contender)
        middle = float(np.median(timing.milliseconds))
        timed = {"milliseconds": middle, "images_per_second": batch * 1000 / middle}
        rows[setting] = rows[setting].model_copy(update=timed)
    fastest = min(rows[setting].milliseconds or np.inf for setting in left)
    chosen = next(setting for setting in left if (rows[setting].milliseconds or np.inf) <= _SAME * fastest)
    tuned = Tuned(
        manifest_sha256=sha256(bundle / manifest.MANIFEST),
        machine=machine,
        version=version_of(chosen.backend),
        goal=goal,
        batch=batch,
        resolution=(size.height, size.width),
        rounds=rounds,
        chosen=chosen,
        rows=tuple(rows.values()),
    )
    write(bundle, tuned)
    return tuned


def _runnable(listed: manifest.Manifest) -> tuple[str, ...]:
    """The CPU's backends and, where there is a GPU, its own; of engines those that the bundle holds."""
    kinds = {each.kind for each in listed.artifacts}
    gpu = bool(hardware.gpus()[0])
    return tuple(
        name
        for name in RUNNERS
        if name in ("openvino", "onnxruntime")
        or (gpu and (name in kinds if name in ENGINES else name == "onnxruntime-cuda"))
    )


def _tried(bundle: Path, listed: manifest.Manifest, setting: Setting, size: Resolution, *, named: bool) -> Row:
    """Its answers against the reference's. A backend that was asked for by name must run, but for bfloat16."""
    try:
        model = load(bundle, setting.backend, form=setting.form, **setting.options)
        artifact = model.artifact(size)
        reports = replay(bundle, listed, artifact, model.runner(artifact), size)
    except RopevitError as error:
        if named and setting.compute is None:
            raise
        return Row(setting=setting, reason=" ".join(str(error).split()))
    failed = next((each for each in reports if not each.passed), None)
    worst = max(each.metrics.relative / each.tolerance.relative for each in reports)
    if failed is not None:
        return Row(setting=setting, worst=None if np.isnan(worst) else worst, reason=failed.sentence())
    return Row(setting=setting, worst=worst)
