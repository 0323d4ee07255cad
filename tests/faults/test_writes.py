"""Every write of an export fails in turn, with every reason that a disk has: none is special.

The walk first counts what an export does to the disk and then repeats it once for each of these and each reason. The
default run takes one of each kind with the commonest reason, `pytest -m slow` all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli
from ropevit_export.machine import files
from tests.faults.conftest import TINY, content
from tests.faults.table import WRITE_REASONS, WRITES

OPERATIONS = ("open_lock", "make_folder", "write", "append", "rename", "exchange", "remove_folder", "sync")
Event = tuple[str, str]  # what is done, to which file


class Disk:
    """Counts what is done to the disk, and fails at the event of a number, before it is done or half-way through."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int | None = None, reason: int = 0) -> None:
        self.events: list[Event] = []
        self._fails_at, self._reason = fails_at, reason
        for name in OPERATIONS:
            patch.setattr(files, name, self._watched(name, getattr(files, name)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *rest: Any, **named: Any) -> Any:
            self.events.append((name, path.name))
            if len(self.events) - 1 == self._fails_at:
                if name in ("write", "append"):  # as on a full disk, a part of it arrives
                    content = bytes(rest[0])
                    function(path, content[: len(content) // 2], **named)
                raise OSError(self._reason, os.strerror(self._reason), str(path))
            return function(path, *rest, **named)

        return call


def export(force: bool) -> int:
    return cli.run([*TINY, "--out", str(Path("out").resolve()), *(["--force"] if force else [])])


def events(force: bool) -> list[Event]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        assert export(force) == 0
    return disk.events


def walk(place: Path, older: Path, chosen: list[int], reason: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Fail at each of the events over an older bundle; after each the disk is as the table says."""
    restore(place, older)
    for number in chosen:
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, reason)
            capsys.readouterr()
            code = export(force=True)
        operation, name = disk.events[number]
        err = capsys.readouterr().err
        where = f"{operation} of {name}, the event {number}: {err}"
        row = WRITES.published if is_behind(disk.events[:number]) else WRITES.unpublished
        assert code == row.code, where
        assert err.count("\n") == 1, where
        assert (row.code == 0) == (not err.startswith("error: ")), where
        assert "Traceback" not in err, where
        left = {each.name for each in place.iterdir()} - {"out"}
        if row.code:
            assert os.strerror(reason) in err or WRITE_REASONS[reason] in err, where
            assert left == set(), where
            assert content(place / "out") == content(older), where
        else:
            assert left <= {".out.partial"}, where  # the older bundle, which could not be removed
            assert cli.run(["check", str(place / "out")]) == 0, where
        assert export(force=True) == 0, where  # nothing is in the way of the next one
        assert {each.name for each in place.iterdir()} == {"out"}, where
        restore(place, older)


def restore(place: Path, older: Path) -> None:
    for name, kept in content(older).items():
        (place / "out" / name).write_bytes(kept)


def is_behind(before: list[Event]) -> bool:
    """Whether the bundle was published before this event."""
    return any(name in ("exchange", "rename") for name, _ in before)


def kinds(found: list[Event]) -> list[int]:
    """The last event of each operation."""
    return sorted({name: number for number, (name, _) in enumerate(found)}.values())


@pytest.mark.usefixtures("_stages_once")
def test_a_write_of_each_kind_fails_on_a_full_disk(
    place: Path, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walk(place, older, kinds(events(force=True)), errno.ENOSPC, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("_stages_once")
@pytest.mark.parametrize("reason", WRITE_REASONS)
def test_every_write_fails(reason: int, place: Path, older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = events(force=True)
    assert len(found) >= WRITES.at_least
    walk(place, older, list(range(len(found))), reason, capsys)


@pytest.mark.usefixtures("_stages_once")
def test_a_new_bundle_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parents, which were made for it, go too."""
    monkeypatch.chdir(tmp_path)
    for number in (0, 1, 5, -1):
        with pytest.MonkeyPatch.context() as patch:
            if number < 0:
                patch.setattr(files, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
            else:
                Disk(patch, number, errno.EACCES)
            assert cli.run([*TINY, "--out", "deep/er/out"]) == 1
        assert capsys.readouterr().err.startswith("error: can't write deep/er/out: ")
        assert list(tmp_path.iterdir()) == []
