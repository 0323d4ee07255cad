"""The few steps in which one bundle takes another's place: whatever happens, one of them is there whole, and what is
printed is true.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli, stages
from ropevit_export.cli import export as export_command
from ropevit_export.machine import files
from tests.faults.conftest import TINY, content, expect
from tests.faults.table import PUBLISHING, REPLACING, Row, rows

Patch = pytest.MonkeyPatch


def around(patch: Patch, name: str, act: Callable[[], object], *, of: str, when: str) -> None:
    """Let `act` happen before or after a function of `files` is called on a file of that name."""
    function = getattr(files, name)

    def call(path: Path, *rest: Any, **named: Any) -> Any:
        mine = path.name == of
        if mine and when == "before":
            act()
        found = function(path, *rest, **named)
        if mine and when == "after":
            act()
        return found

    patch.setattr(files, name, call)


def raising(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def sending(signum: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


def no_exchange(patch: Patch) -> None:
    """As on filesystems of networks, and on other systems than Linux."""

    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    patch.setattr(files, "exchange", refuse)


def printing(patch: Patch, act: Callable[[], object]) -> None:
    patch.setattr(export_command, "_print_summary", lambda bundle: act())


def two_renames(patch: Patch, act: Callable[[], object], *, when: str, of: str) -> None:
    no_exchange(patch)
    around(patch, "rename", act, of=of, when=when)


def immutable_leftover(patch: Patch) -> None:
    Path(".out.replaced").mkdir()
    around(patch, "remove_folder", raising(errno.EPERM), of=".out.replaced", when="before")


def as_the_older_goes(patch: Patch, act: Callable[[], object]) -> None:
    calls: list[None] = []

    def second() -> None:
        calls.append(None)
        if len(calls) == 2:  # the first clears up after an earlier run
            act()

    around(patch, "remove_folder", second, of=".out.partial", when="before")


def broken_pipe() -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


ACTS: dict[str, Callable[[Patch], object]] = {
    "SIGTERM as the folder is about to be exchanged": lambda patch: around(
        patch, "exchange", sending(signal.SIGTERM), of=".out.partial", when="before"
    ),
    "SIGINT as the folder has just been exchanged": lambda patch: around(
        patch, "exchange", sending(signal.SIGINT), of=".out.partial", when="after"
    ),
    "SIGTERM while the older bundle is removed": lambda patch: as_the_older_goes(patch, sending(signal.SIGTERM)),
    "SIGTERM while files are synced": lambda patch: around(
        patch, "sync", sending(signal.SIGTERM), of="manifest.json", when="before"
    ),
    "SIGTERM between the two renames where folders can't be exchanged": lambda patch: two_renames(
        patch, sending(signal.SIGTERM), when="after", of="out"
    ),
    "SIGINT after the two renames where folders can't be exchanged": lambda patch: two_renames(
        patch, sending(signal.SIGINT), when="after", of=".out.partial"
    ),
    "the second of the two renames fails": lambda patch: two_renames(
        patch, raising(errno.EIO), when="before", of=".out.partial"
    ),
    "SIGTERM while the result is printed": lambda patch: printing(patch, sending(signal.SIGTERM)),
    "stdout is full": lambda patch: printing(patch, raising(errno.ENOSPC)),
    "the reader of stdout has left": lambda patch: printing(patch, broken_pipe),
    "the folder that the bundle is in can't be synced": lambda patch: around(
        patch, "sync", raising(errno.EIO), of=Path.cwd().name, when="before"
    ),
    "the older bundle can't be removed once it is replaced": lambda patch: as_the_older_goes(
        patch, raising(errno.EPERM)
    ),
    "what a killed run left can't be removed": immutable_leftover,
}


@pytest.mark.usefixtures("signals", "_stages_once")
@pytest.mark.parametrize("row", rows(PUBLISHING))
def test_one_whole_bundle_stands(
    row: Row, place: Path, older: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        ACTS[row.fault](patch)
        # the parent's name is "" otherwise, where --out is relative
        code = cli.run([*TINY, "--out", str(place / "out"), "--force"])
    err = capsys.readouterr().err.replace(f"{place}{os.sep}", "")
    expect(row, place, older, code, err)
    if row.left:
        assert cli.run([*TINY, "--out", "out", "--force"]) == 0  # the next one clears up
        assert [each.name for each in place.iterdir()] == ["out"]


def attributes(change: str, *names: str) -> bool:
    """`chattr`: whether the filesystem has such attributes, and we the right to set them."""
    return subprocess.run(["chattr", change, *names], check=False, capture_output=True).returncode == 0


def made_immutable(request: pytest.FixtureRequest, *names: str) -> None:
    if not attributes("+i", *names):
        pytest.skip("needs root, and a filesystem with attributes")
    request.addfinalizer(lambda: attributes("-i", *names))


def mounted(request: pytest.FixtureRequest, name: str = "out") -> None:
    if subprocess.run(["mount", "--bind", name, name], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    path = Path(name).resolve()
    request.addfinalizer(lambda: subprocess.run(["umount", str(path)], check=True))


def of_another_user(patch: Patch) -> None:
    """The sticky bit binds everyone but root, and tests may be root's."""
    theirs = os.geteuid() + 1 if os.geteuid() else 1234
    Path.cwd().chmod(0o1777)
    patch.setattr(os, "geteuid", lambda: theirs)


def read_only(patch: Patch) -> None:
    Path("out").chmod(0o555)
    if os.geteuid() == 0:  # who may do anything
        allowed = os.access
        patch.setattr(os, "access", lambda path, mode: allowed(path, mode) and not mode & os.W_OK)


Prepare = Callable[[Patch, pytest.FixtureRequest], object]
PREPARE: dict[str, Prepare] = {
    "without --force": lambda patch, request: None,
    "the older bundle is read-only": lambda patch, request: read_only(patch),
    "the older bundle is immutable": lambda patch, request: made_immutable(request, str(Path("out").resolve())),
    "a file of the older bundle is immutable": lambda patch, request: made_immutable(
        request, str(Path("out/manifest.json").resolve())
    ),
    "the older bundle is another user's, in a folder with the sticky bit": lambda patch, request: of_another_user(
        patch
    ),
    "--out is the present folder": lambda patch, request: patch.chdir("out"),
    "--out is a mount point": lambda patch, request: mounted(request),
    "a file of the older bundle is a mount point": lambda patch, request: mounted(request, "out/manifest.json"),
    "--out is a folder that is no bundle": lambda patch, request: Path("out/manifest.json").unlink(),
    "--out has a byte that is no UTF-8": lambda patch, request: clear(Path("out")),
    "--out has a name of 256 bytes": lambda patch, request: clear(Path("out")),
    "--out has a name of 255 bytes": lambda patch, request: None,
}
OUT = {
    "--out is the present folder": ".",
    "--out has a byte that is no UTF-8": os.fsdecode(b"b\xff"),
    "--out has a name of 256 bytes": "n" * 256,
}


def clear(folder: Path) -> None:
    files.remove_folder(folder)


@pytest.mark.usefixtures("_stages_once")
@pytest.mark.parametrize("row", rows(REPLACING))
def test_what_can_t_be_replaced_is_refused_before_the_build(
    row: Row,
    place: Path,
    older: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    def load(*arguments: object) -> None:
        pytest.fail("must not begin")

    before = content(place / "out")
    with monkeypatch.context() as patch:
        PREPARE[row.fault](patch, request)
        if row.code:
            patch.setattr(stages, "load", load)
        force = () if row.fault == "without --force" else ("--force",)
        if row.fault == "--out has a name of 255 bytes":
            code = cli.run([*TINY, "--out", "n" * 255])
            assert (place / ("n" * 255)).rename(place / "new").is_dir()
            clear(place / "out")
            (place / "new").rename(place / "out")
        else:
            code = cli.run([*TINY, "--out", OUT.get(row.fault, "out"), *force])
    err = capsys.readouterr().err
    if row.fault == "--out is a folder that is no bundle":
        assert content(place / "out") == {name: each for name, each in before.items() if name != "manifest.json"}
        (place / "out" / "manifest.json").write_bytes(before["manifest.json"])
    expect(row, place, older, code, err)


@pytest.mark.usefixtures("_stages_once")
def test_mode_and_group_of_a_folder_are_kept(place: Path) -> None:
    """Of an empty one too, which somebody made for the bundle."""
    group = 12345 if os.geteuid() == 0 else place.stat().st_gid
    (place / "empty").mkdir()
    for name in ("out", "empty"):
        os.chown(name, -1, group)
        (place / name).chmod(0o2750)
        assert cli.run([*TINY, "--out", name, "--force"]) == 0
        found = (place / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o2750, group)
        assert {each.stat().st_gid for each in (place / name).iterdir()} == {group}  # of which setgid is


@pytest.mark.parametrize("moment", [0, 0.03, 0.1])
def test_ctrl_c_at_once_is_one_line(tmp_path: Path, moment: float) -> None:
    """While the command line is still being imported; what Python does before our first line is its own."""
    code = f"""
import os, signal, threading, time
from ropevit_export.start import main, interrupt

def press():
    while signal.getsignal(signal.SIGHUP) is not interrupt:
        time.sleep(0.001)
    time.sleep({moment})
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press, daemon=True).start()
import tests.rows
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, "--out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "error: interrupted, nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">&-", 1, "error: stdout is closed, where results go: leave it open, or send it to /dev/null.\n"),
        (">/dev/full", 1, "error: can't write the result: No space left on device.\n"),
        ("2>&-", 0, ""),
        (">&- 2>&-", 1, ""),
        ("2>/dev/full >/dev/full", 1, ""),
        ("<&- >/dev/null", 0, ""),
    ],
)
def test_a_result_that_nobody_gets_is_no_success(streams: str, code: int, says: str) -> None:
    program = f"{sys.executable} -c 'from ropevit_export.start import main; main()' models --json {streams}"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, says)


def test_stdout_is_asked_for_before_the_build(tmp_path: Path) -> None:
    program = f"{sys.executable} -c 'from ropevit_export.start import main; main()' {' '.join(TINY)} --out out >&-"
    done = subprocess.run(["sh", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []
