"""An export that costs only its writes: what comes before them is made once."""

from __future__ import annotations

import functools
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli, stages
from ropevit_export.machine.process import SIGNALS, Interrupted, interrupt
from tests.faults.table import Row

# Two blocks of 48 channels: a bundle of half a megabyte.
TINY = ("--model", "shallow_rope_mixed_deit_digits", "--res", "32", "--engine", "none", "-q", "--weights", "random")
OLDER_SEED = 1


@pytest.fixture(scope="session")
def _stages_once() -> Iterator[None]:
    """References and float32 graphs of the same request are not computed again."""
    kept: dict[Any, Any] = {}

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(request: Any, *rest: Any) -> Any:
            progress = rest[-1]
            key = repr((function.__name__, request, rest[1:-1]))
            if key not in kept:
                kept[key] = function(request, *rest)
            progress(function.__name__)
            return kept[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "reference_answers", once(stages.reference_answers))
        yield


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another seed than what replaces it."""
    path = tmp_path_factory.mktemp("older") / "out"
    assert cli.run([*TINY, "--seed", str(OLDER_SEED), "--out", str(path)]) == 0
    return path


@pytest.fixture
def place(older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with the older bundle in it as `out` and nothing else."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(older, tmp_path / "out")
    return tmp_path


@pytest.fixture
def signals() -> Iterator[None]:
    """As `start.main` sets them."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each in SIGNALS:
        signal.signal(each, interrupt)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
    Interrupted.arrived = False


def content(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def expect(row: Row, place: Path, older: Path, code: int, err: str) -> None:
    """That it is as the row says; of a new bundle also that `check` accepts it."""
    assert code == row.code, err
    assert row.says in err
    assert err.count("\n") == bool(row.says)
    assert "Traceback" not in err
    out = place / "out"
    wanted = {"out"} if row.stands != "nothing" else set()
    assert {each.name for each in place.iterdir()} == wanted | ({row.left} if row.left else set())
    if row.stands == "the older bundle":
        assert content(out) == content(older)
    elif row.stands == "the new bundle":
        assert (out / "manifest.json").read_bytes() != (older / "manifest.json").read_bytes()
        assert cli.run(["check", str(out)]) == 0
    else:
        assert row.stands == "nothing"
