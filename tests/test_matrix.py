"""Many bundles: each on its own, none half, and none twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli, pipeline
from ropevit_export.bundle import manifest, resume
from ropevit_export.errors import BackendError, BundleError
from ropevit_export.machine.files import sha256
from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Resolution
from ropevit_export.verbs import matrix
from tests.rows import command_line

# Two seeded blocks: every process traces anew.
MODEL = ("--model", "shallow_rope_mixed_deit_digits", "--weights", "random", "--engine", "none")
NAMES = ["shallow_rope_mixed_deit_digits-32-fp32-random", "shallow_rope_mixed_deit_digits-48-fp32-random"]
PAIR = ("--matrix", "--res", "32,48", "--out", "many")


def request(size: str = "32", **changes: Any) -> Request:
    changes = {"engines": ("none",), "weights": "random", "resolutions": (Resolution.parse(size),)} | changes
    return Request(model=find_model(MODEL[1]), **changes)


def outcomes(events: Iterator[matrix.Event]) -> dict[str, matrix.Outcome]:
    return {cell.out.name: said for cell, said in events if not isinstance(said, str)}


def begin(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return command_line(*MODEL, *arguments, cwd=cwd)


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle; tests must not change it."""
    path = tmp_path_factory.mktemp("matrix") / NAMES[0]
    pipeline.export(request(), out=path)
    return path


def killed(folder: Path, signum: signal.Signals) -> tuple[int, str]:
    """A matrix that gets a signal while its second bundle is being written: exit code and the last line on stderr."""
    begun = folder / "many" / f".{NAMES[1]}.partial" / "model-48.onnx"
    with begin(*PAIR, cwd=folder) as process:
        until(lambda: begun.exists() or process.poll() is not None)
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    return process.returncode, "\n".join(err.splitlines()[-1:])


@pytest.mark.slow
def test_a_killed_matrix_goes_on_where_it_was(tmp_path: Path, built: Path) -> None:
    """The first bundle is there before; none of three runs may touch it."""
    many = tmp_path / "many"
    shutil.copytree(built, many / NAMES[0])
    before = inodes(many / NAMES[0])
    code, last = killed(tmp_path, signal.SIGTERM)
    assert code == 130
    assert "interrupted; 1 of 2 bundles are there: begin again to go on." in last
    assert names(many) == NAMES[:1]
    code, _ = killed(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with begin(*PAIR, "--json", cwd=tmp_path) as process:  # at once: what was killed may still be ending
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [each["result"] for each in json.loads(out)["bundles"]] == ["kept", "built"]
    assert inodes(many / NAMES[0]) == before
    assert names(many) == NAMES
    assert [cli.run(["check", str(many / name)]) for name in NAMES] == [0, 0]


@pytest.mark.again
def test_two_builds_of_one_bundle_at_once(tmp_path: Path) -> None:
    with (
        begin("--res", "32", "--out", "one", cwd=tmp_path) as first,
        begin("--res", "32", "--out", "one", cwd=tmp_path) as second,
    ):
        said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in (first, second)]
        codes = [first.returncode, second.returncode]
    assert sorted(codes) == [0, 1]
    assert "error: one is being built by another process now" in said[codes.index(1)]
    assert names(tmp_path) == ["one"]
    assert cli.run(["check", str(tmp_path / "one")]) == 0


@pytest.mark.parametrize("sizes", ["32", pytest.param("32,48", marks=pytest.mark.slow)])
def test_two_matrices_at_once_build_each_bundle_once(tmp_path: Path, sizes: str) -> None:
    arguments = ("--matrix", "--res", sizes, "--out", "many", "--json", "--jobs", "2")
    with begin(*arguments, cwd=tmp_path) as first, begin(*arguments, cwd=tmp_path) as second:
        said = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    results = [[each["result"] for each in json.loads(out)["bundles"]] for out, _ in said]
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["built", "kept"]] * len(results[0])
    assert names(tmp_path / "many") == NAMES[: len(results[0])]


def test_a_bundle_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.toml").write_text('weights = "absent.pth"\n')
    (tmp_path / "right.toml").write_text('weights = "random"\nseed = 1\n')
    arguments = [
        "--model",
        MODEL[1],
        "--engine",
        "none",
        "--matrix",
        "--res",
        "32",
        "--recipe",
        "wrong.toml,right.toml",
        "--out",
        "many",
    ]
    code = cli.run(arguments)
    out, err = capsys.readouterr()
    *progress, last = err.splitlines()
    assert (code, last) == (1, "error: 1 of 2 bundles were not built.")
    assert progress[0].startswith(f"1 of 2  {MODEL[1]}-32-fp32-wrong: failed: no checkpoint at absent.pth")
    assert progress[1].startswith(f"2 of 2  {MODEL[1]}-32-fp32-right-random: built, ")
    assert [word for word in ("wrong", "right", "failed:", "built") if word not in out] == []
    assert names(tmp_path / "many") == [f"{MODEL[1]}-32-fp32-right-random"]


def test_a_process_that_dies_is_a_bundle_that_failed(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system is out of memory; what it had begun to write goes too."""
    begun: list[subprocess.Popen[bytes]] = []
    begin_process = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(begin_process(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    many = tmp_path / "many"
    shutil.copytree(built, many / NAMES[0])
    found = {}
    for cell, said in matrix.build([matrix.Cell.of(request(size), "", many) for size in ("48", "32")]):
        if said == "trace 48":
            assert f".{NAMES[1]}.partial" in names(many)
            begun[0].kill()
        found[cell.out.name] = said
    alive, dead = (found[name] for name in NAMES)
    assert isinstance(dead, matrix.Outcome)
    assert isinstance(alive, matrix.Outcome)
    assert (dead.result, alive.result) == ("failed", "kept")
    assert "the build's process ended by SIGKILL, was memory short?" in (dead.reason or "")
    assert names(many) == NAMES[:1]


def test_out_of_tolerance_is_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def outside(cells: list[matrix.Cell], **_: object) -> Iterator[matrix.Event]:
        yield cells[0], matrix.Outcome(result="failed", reason="of memory", exit_code=1)
        yield cells[1], matrix.Outcome(result="failed", reason="of parity", exit_code=3)

    monkeypatch.setattr(matrix, "build", outside)
    assert cli.run([*MODEL, "--matrix", "--res", "32,48", "--out", str(tmp_path), "-q"]) == 3
    assert capsys.readouterr().err == "error: 2 of 2 bundles were not built, for parity among others.\n"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "was built with seed 0, which is 1 now: add --force"),
        ({"batch": "2"}, "was built with batch 1, which is 2 now"),
        ({"weights": "auto"}, "was built with weights random, which is auto now"),
    ],
)
def test_a_bundle_of_another_request_is_not_kept(built: Path, changes: dict[str, Any], sentence: str) -> None:
    from ropevit_export.values import Dim

    changes = {key: Dim.parse(value) if key == "batch" else value for key, value in changes.items()}
    with pytest.raises(BundleError, match=sentence):
        resume.existing(request(**changes), built)
    assert resume.existing(request(**changes), built, force=True) is None


def test_a_bundle_of_other_versions_is_not_kept(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = resume.versions()
    kept = resume.existing(request(), built)
    assert kept is not None
    assert kept.kept
    for unimportant in ({"python": "3.99"}, {"tensorrt": "11.0"}):
        monkeypatch.setattr(resume, "versions", lambda given=unimportant: now | given)
        assert resume.existing(request(), built) is not None
    monkeypatch.setattr(resume, "versions", lambda: now | {"torch": "99"})
    with pytest.raises(BundleError, match="was built with torch .*, which is 99 now"):
        resume.existing(request(), built)


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_bundle_of_weights_that_changed_is_not_kept(tmp_path: Path, built: Path, by: str) -> None:
    from ropevit_export.checkpoint import source

    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "model.safetensors"
    mine.write_bytes(source.PACKAGED.read_bytes())
    weights = mine if by == "file" else mine.parent
    found = manifest.read(built)
    found = found.model_copy(update={"weights": found.weights.model_copy(update={"sha256": sha256(mine)})})
    copy = tmp_path / "copy"
    copy.mkdir()
    wanted = request(weights=str(weights))
    found.model_copy(update={"request": wanted.options()}).write(copy)
    assert "/" not in str(wanted.options())
    assert resume.existing(wanted, copy) is not None
    mine.write_bytes(b"tuned again")
    with pytest.raises(BundleError, match=f"was built from other weights than {weights.name} holds now"):
        resume.existing(wanted, copy)
    found.model_copy(update={"request": None}).write(copy)
    with pytest.raises(BundleError, match="was built by a version that did not note its request"):
        resume.existing(wanted, copy)


def test_calibration_images_that_changed_are_another_request(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"one")
    wanted = request(precision="int8", calib=str(tmp_path / "photos"))
    before = resume.noted(wanted)
    assert before["calib"] == "photos"
    (tmp_path / "photos" / "a.png").write_bytes(b"two")
    assert resume.noted(wanted) != before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "deit_small,swin_tiny", "--res", "224", "--rope", "dynamic"],
         "error: swin_tiny, 224: --rope dynamic is for ViTs without windows"),
        (["--model", "deit_small,deit_smal", "--res", "224"], "error: deit_smal, 224: unknown model"),
        (["--model", "deit_small", "--res", "224,230"], "error: deit_small, 230: resolution 230x230 does not suit"),
        (["--model", "deit_small"], "error: deit_small: no resolution: give at least one --res"),
        (["--res", "224"], "error: 224: no model: give --model NAME"),
        (["--model", "deit_small", "--res", "224,224"], "two bundles of the matrix would be called deit_small-224"),
        (["--model", "deit_small", "--res", "224", "--recipe", "a/x.toml,b/x.toml"],
         "two bundles of the matrix would be called deit_small-224-fp32-x"),
        (["--model", "deit_small", "--res", "224", "--recipe", "a/x.toml,c/swin.toml"],
         "error: c/swin.toml: a recipe has no option 'colour'"),
    ],
)  # fmt: skip
def test_nothing_is_built_until_every_bundle_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, text in (("a/x", ""), ("b/x", ""), ("c/swin", "colour = 3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.toml").write_text(text)
    assert cli.run([*arguments, "--matrix"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert names(tmp_path) == ["a", "b", "c"]


def test_random_weights_are_in_the_name() -> None:
    """Nobody named this folder, so it says what is in it."""
    cell = matrix.Cell.of(request(), "cpu", Path("many"))
    assert cell.out == Path(f"many/{MODEL[1]}-32-fp32-cpu-random")


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"--ray needs Ray: pip install 'ropevit-export\[ray\]'"):
        list(matrix.build_on_ray([matrix.Cell.of(request(), "", tmp_path)]))


def test_each_bundle_is_a_ray_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ropevit-export[ray]'")
    monkeypatch.chdir(tmp_path)
    with begin("--matrix", "--res", "32,48", "--out", "many", "--ray", "--json", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert [each["result"] for each in json.loads(out)["bundles"]] == ["built", "built"]
    assert names(tmp_path / "many") == NAMES
    wrong = [matrix.Cell.of(request(weights="absent.pth"), "wrong", Path("many"))]
    cells = [*wrong, matrix.Cell.of(request(), "", Path("many"))]
    found = outcomes(matrix.build_on_ray(cells, jobs=1))
    assert [each.result for each in found.values()] == ["failed", "kept"]
    assert "no checkpoint at absent.pth" in (found[wrong[0].out.name].reason or "")
