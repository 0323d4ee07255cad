"""A table that grows in parts, so that a killed run can go on: `FILE.parts/` beside the file that it will be.

Rows come in the order of a list, so the parts that are there say how far a run has got: each is named by the rows that
it holds, is written under another name and renamed once it is whole. At the end they are copied into one file, which
takes its place in one step too. A kill at any moment leaves whole parts, and at most rows that were not yet in one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropevit_export.bundle.lock import locked
from ropevit_export.errors import BackendError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

_PART = re.compile(r"(\d{12})-(\d{12})\.parquet")
# Where a file notes what it was made of, and `FILE.parts/` too.
_KEY, _PLAN = b"ropevit-export", "plan.json"


class Parts:
    """Of one output. `done`: rows that are in whole parts."""

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self._out, self._plan = out, plan
        self._folder = out.with_name(f"{out.name}.parts")
        self.done = self._begun()

    def add(self, table: pa.Table) -> None:
        """The next rows, as a part."""
        import pyarrow.parquet as pq

        stop = self.done + table.num_rows
        name = f"{self.done:012}-{stop:012}.parquet"
        with _whole(self._folder / name) as path:
            pq.write_table(table, path)
        self.done = stop

    def finish(self) -> None:
        """One file of all parts; they are removed once it is there."""
        import pyarrow.parquet as pq

        files = self._parts()
        schema = pq.read_schema(files[0])
        schema = schema.with_metadata({**(schema.metadata or {}), _KEY: json.dumps(self._plan).encode()})
        with _whole(self._folder / "all", self._out) as path, pq.ParquetWriter(path, schema) as writer:
            for file in files:
                writer.write_table(pq.read_table(file).cast(schema))
        shutil.rmtree(self._folder)

    def _begun(self) -> int:
        """Rows of an earlier run of the same plan. Raises InputError for another's."""
        self._folder.mkdir(parents=True, exist_ok=True)
        plan = self._folder / _PLAN
        if plan.is_file():
            begun = json.loads(plan.read_text("utf-8"))
            for name, value in self._plan.items():
                if begun.get(name) != value:
                    raise InputError(
                        f"{self._folder} was begun with {name} {_short(begun.get(name))}, which is {_short(value)} "
                        "now: go on as it was begun, or remove it to begin again."
                    )
        else:
            with _whole(plan) as path:
                path.write_text(json.dumps(self._plan), "utf-8")
        return sum(stop - start for start, stop in map(_rows, self._parts()))

    def _parts(self) -> list[Path]:
        """In the order of their rows, which follow one another."""
        files = sorted(each for each in self._folder.iterdir() if _PART.fullmatch(each.name))
        at = 0
        for file in files:
            start, stop = _rows(file)
            if start != at:
                raise InputError(f"{self._folder} lacks rows {at} to {start}: remove it to begin again.")
            at = stop
        return files


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Be the only one who writes `out`. Raises InputError where another process does, or where it can't be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock")):
            yield
    except BlockingIOError as error:
        raise InputError(f"{out} is being written by another process now: wait for it, or name another.") from error
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror or error}.") from error


def finished(out: Path, plan: dict[str, Any]) -> bool:
    """Whether an earlier run of the same plan has written the file; what it may have left beside it is removed.

    Raises InputError for a file that is anything else.
    """
    if not out.exists():
        return False
    if _plan_of(out) != plan:
        raise InputError(f"{out} exists and is not of this bundle, these pictures and options: name another --out.")
    shutil.rmtree(out.with_name(f"{out.name}.parts"), ignore_errors=True)
    return True


def require_pyarrow() -> None:
    """Raise BackendError before anything is computed that could not be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise BackendError(f"pyarrow can't be imported ({error}): pip install 'ropevit-export[predict]'") from error


def _plan_of(out: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return json.loads((pq.read_schema(out).metadata or {}).get(_KEY, b"null"))
    except (OSError, ValueError, pa.ArrowException):
        return None


@contextlib.contextmanager
def _whole(path: Path, final: Path | None = None) -> Iterator[Path]:
    """A name to write to, beside `path`; what was written gets the final name once it is on the disk."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    yield unfinished
    with unfinished.open("rb") as stream:
        os.fsync(stream.fileno())
    unfinished.replace(final or path)


def _rows(part: Path) -> tuple[int, int]:
    found = _PART.fullmatch(part.name)
    assert found
    return int(found[1]), int(found[2])


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}…"
