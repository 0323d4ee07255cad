"""Engines built before: a folder an engine, named by all that its bytes depend on.

Safe with several builders at once: an entry appears whole, by one rename, and who comes second keeps the first's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ropevit_export.machine import files
from ropevit_export.machine.files import sha256
from ropevit_export.request import EngineSpec
from ropevit_export.values import Plan

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder

log = logging.getLogger("ropevit_export")
_PLAN = "plan.json"


def build(maker: Builder, graph: Sequence[Path], spec: EngineSpec, path: Path, cache: Path | None) -> Plan:
    """`maker.build`, or a copy of what it built from the same bytes. `graph`: the ONNX file, then its external data."""
    onnx = graph[0]
    if cache is None:
        return maker.build(onnx, spec, path)
    entry = cache / _key(maker, spec, graph)
    found = _taken(entry, path)
    if found is not None:
        log.info("%s: taken from the build cache", path.name)
        return found
    plan = maker.build(onnx, spec, path)
    try:
        _keep(plan, path, entry)
    except OSError as error:  # the engine is there: that the next build takes as long is no reason to lose it
        log.warning("%s is not kept in the build cache %s: %s", path.name, cache, error.strerror or error)
    return plan


def _key(maker: Builder, spec: EngineSpec, inputs: Sequence[Path]) -> str:
    facts = dataclasses.asdict(spec)
    del facts["require_fused_attention"]  # of the result, not of how it is made
    facts |= {"options": spec.options.given(), "targets": maker.targets(spec)}
    versions = [maker.version, importlib.metadata.version("ropevit-export")]
    digests = [sha256(path) for path in inputs]
    text = json.dumps([facts, versions, digests], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _taken(entry: Path, path: Path) -> Plan | None:
    """A kept engine, copied to `path` and beside it. None where there is none, or it is not what was kept."""
    try:
        kept = json.loads((entry / _PLAN).read_bytes())
        taken = []
        for ending, digest in kept.pop("files").items():
            if sha256(entry / f"engine{ending}") != digest:
                raise ValueError(f"engine{ending} has changed")
            taken.append(path.with_name(path.stem + ending))
            files.copy(entry / f"engine{ending}", taken[-1])
        return Plan(
            **kept | {"files": tuple(taken), "layers": tuple(kept["layers"]), "targets": tuple(kept["targets"])}
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("the build cache's %s is damaged (%s): built again", entry.name[:12], error)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _keep(plan: Plan, path: Path, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".") as folder:
        new = Path(folder) / "entry"
        new.mkdir()
        digests = {}
        for file in plan.files:
            ending = file.name.removeprefix(path.stem)
            files.copy(file, new / f"engine{ending}")
            digests[ending] = sha256(file)
        kept = {each.name: getattr(plan, each.name) for each in dataclasses.fields(plan)} | {"files": digests}
        files.write(new / _PLAN, json.dumps(kept).encode())
        try:
            files.rename(new, entry)
        except OSError:
            if not entry.is_dir():  # else another builder was first
                raise
