"""What a machine does to an export: signals at every stage, disks, memory, clocks, processes, broken libraries."""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli, stages
from ropevit_export.bundle import staging
from ropevit_export.cli import export as export_command
from ropevit_export.machine import files
from tests.faults.conftest import TINY, content, expect
from tests.faults.table import MACHINE, Row, rows

Patch = pytest.MonkeyPatch


def at_stage(patch: Patch, number: int, act: Callable[[], object]) -> None:
    """Let something happen as a stage begins, the first of which is 1."""

    @contextlib.contextmanager
    def bar(count: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
        begun = itertools.count(1)

        def progress(stage: str) -> None:
            if next(begun) == number:
                act()

        yield progress

    patch.setattr(export_command, "progress_bar", bar)


def raising(error: Exception) -> Callable[..., None]:
    def act(*arguments: object, **named: object) -> None:
        raise error

    return act


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def broken_import(patch: Patch, error: Exception) -> None:
    whole = builtins.__import__

    def load(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "openvino":
            raise error
        return whole(name, *rest)

    patch.setattr(builtins, "__import__", load)


def jumping(patch: Patch) -> None:
    """Every look at a clock gives an earlier time than the one before."""
    looks = itertools.count()
    for name in ("time", "perf_counter", "monotonic"):
        patch.setattr(time, name, lambda: 1e9 - 3600 * next(looks))


def torch_error() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to "
                        "allocate 1208925819614629174706176 bytes. Error code 12 (Cannot allocate memory)")  # fmt: skip


ACTS: dict[str, Callable[[Patch], object]] = {
    "the quota is used up": lambda patch: patch.setattr(files, "append", raising(os_error(errno.EDQUOT))),
    "a file may not get so large": lambda patch: patch.setattr(files, "append", raising(os_error(errno.EFBIG))),
    "memory is used up in Python": lambda patch: patch.setattr(stages, "traced", raising(MemoryError())),
    "memory is used up in torch": lambda patch: patch.setattr(stages, "traced", raising(torch_error())),
    "memory is used up in a runtime": lambda patch: patch.setattr(
        stages, "traced", raising(RuntimeError("std::bad_alloc"))
    ),
    "the clock jumps back at every look": jumping,
    "a runtime that lacks a shared library": lambda patch: broken_import(
        patch, ImportError("libtbb.so.12: cannot open shared object file")
    ),
    "a runtime that fails while it is imported": lambda patch: broken_import(patch, OSError("wrong ELF class")),
}
ON_A_DISK = {
    "the disk is full": ("size=600k", ""),
    "the disk has no room for more files": ("nr_inodes=16", ""),
    "the disk is read-only": ("size=4m", "remount,ro"),
}
LIMITED = {
    "a process may have 1 GB (`ulimit -v`)": "resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))",
    "memory is used up as a bundle is written (`ulimit -v`)": """
from ropevit_export.bundle import draft
from ropevit_export.machine import files
append, taken = files.append, []
def call(*rest, **named):
    append(*rest, **named)
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)
    size = 1 << 20
    while size > 1 << 10:
        try:
            taken.append(bytearray(size))
        except MemoryError:
            size //= 2
    bytearray(1 << 20)
files.append = call
""",
}


@pytest.mark.usefixtures("signals", "_stages_once")
@pytest.mark.parametrize("row", rows(MACHINE, lambda fault: fault not in {*ON_A_DISK, *LIMITED}))
def test_the_older_bundle_outlives_it(
    row: Row, place: Path, older: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = "out", [*TINY]
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        if " at stage " in row.fault:
            name, _, rest = row.fault.partition(" at stage ")
            at_stage(patch, int(rest[0]), lambda: signal.raise_signal(getattr(signal, name)))
        elif row.fault == "the folder vanishes":
            files.remove_folder(place / "out")
            out = "gone/out"
            at_stage(patch, 4, lambda: shutil.rmtree(place / "gone"))
        elif row.fault == "another process builds the same bundle":
            stack.enter_context(staging.claimed(Path("out")))
        else:
            ACTS[row.fault](patch)
        if "runtime that" in row.fault:
            options[options.index("--engine") + 1] = "openvino"
        code = cli.run([*options, "--out", out, "--force"])
        err = capsys.readouterr().err
        if row.left:
            assert {each.name for each in place.iterdir()} == {"out", row.left}
    if row.left:
        row = Row(fault=row.fault, code=row.code, says=row.says, stands=row.stands)
    expect(row, place, older, code, err)


@pytest.mark.parametrize("row", rows(MACHINE, LIMITED.__contains__))
def test_a_limit_on_memory(row: Row, place: Path, older: Path) -> None:
    """The system's own, in a process of its own."""
    code = f"import resource\n{LIMITED[row.fault]}\nfrom ropevit_export.start import main; main()"
    model = TINY[1].removeprefix("shallow_")  # which the program knows by itself
    done = subprocess.run(
        [sys.executable, "-c", code, "--model", model, *TINY[2:], "--out", "out", "--force"], check=False,
        capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    expect(row, place, older, done.returncode, done.stderr)


@pytest.fixture
def disk(place: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """A disk of one's own, with the older bundle on it."""

    def mount(options: str) -> Path:
        path = place / "disk"
        path.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=False, capture_output=True
        ).returncode:
            pytest.skip("needs the right to mount")
        request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(path)], check=True))
        shutil.copytree(place / "out", path / "out")
        return path

    return mount


@pytest.mark.usefixtures("_stages_once")
@pytest.mark.parametrize("row", rows(MACHINE, ON_A_DISK.__contains__))
def test_a_disk_that_takes_no_more(
    row: Row, place: Path, older: Path, disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, again = ON_A_DISK[row.fault]
    path = disk(options)
    if again:
        subprocess.run(["mount", "-o", again, str(path)], check=True)
    code = cli.run([*TINY, "--out", "disk/out", "--force"])
    err = capsys.readouterr().err
    assert code == row.code
    assert row.says in err
    assert err.count("\n") == 1
    assert [each.name for each in path.iterdir()] == ["out"]
    assert content(path / "out") == content(older)


@pytest.mark.usefixtures("_stages_once")
@pytest.mark.slow
def test_what_a_killed_run_leaves_is_gone_after_the_next(place: Path, older: Path) -> None:
    """SIGKILL in the middle of the weights, of a process of its own."""
    code = """
import os, signal, sys
import tests.rows
from ropevit_export.machine import files
append, calls = files.append, []
def call(*rest, **named):
    calls.append(rest)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return append(*rest, **named)
files.append = call
from ropevit_export.start import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, "--out", "out", "--force"], check=False, capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert {each.name for each in place.iterdir()} == {"out", ".out.lock", ".out.partial"}
    assert content(place / "out") == content(older)
    assert cli.run([*TINY, "--out", "out", "--force"]) == 0
    assert {each.name for each in place.iterdir()} == {"out"}
