"""`report BUNDLE…`: the page that lies in every bundle, made again, of several side by side, or with more to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropevit_export.bundle import manifest
from ropevit_export.errors import InputError, UsageError, with_kind
from ropevit_export.report import page


def render(bundles: Sequence[Path], *, bench: Path | None = None, layers: Sequence[Path] = ()) -> str:
    """The page, from files alone. bench: what `bench --out` wrote. layers: what `check --by-layer --json` said, each of
    one of the bundles, which it names. Raises RopevitError.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {bundle.resolve().name: [] for bundle in bundles}
    for file in layers:
        found = _read(file, "graphs", "check --by-layer --json")
        of = Path(str(found.get("bundle"))).name
        if of not in by_name:
            raise UsageError(f"{file} is of the bundle {of}, which is none of {', '.join(by_name)}.")
        by_name[of] += found["graphs"]
    subjects = [
        page.Subject(bundle, manifest.read(bundle), bundle.resolve().name, by_name[bundle.resolve().name])
        for bundle in bundles
    ]
    try:
        return page.render(subjects, bench=None if bench is None else _read(bench, "timings", "bench --out"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        given = [*layers, *([bench] if bench else [])]
        if not given:
            raise
        raise InputError(f"{', '.join(map(str, given))} can't be shown: {with_kind(error)}.") from error


def _read(path: Path, needed: str, source: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}. Needs what `{source}` wrote.") from error
    if not isinstance(found, dict) or not found.get(needed):
        raise InputError(f"{path} has no {needed}: needs what `{source}` wrote.")
    return found
