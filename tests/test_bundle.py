"""The folder appears whole or not at all, and its manifest is believed only when it is right."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from safetensors.numpy import load_file

from ropevit_export.bundle import golden, lock, manifest, staging
from ropevit_export.errors import BundleError
from ropevit_export.machine import files

SHA = "0" * 64


def bundle(path: Path, text: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(text)
    return path


@contextlib.contextmanager
def staged(final: Path, *, force: bool) -> Iterator[Path]:
    with staging.claimed(final), staging.staged(final, force=force) as folder:
        yield folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_appears_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "out"
    with staged(final, force=False) as folder:
        (folder / "file").write_text("new")
        assert not final.exists()
    assert (final / "file").read_text() == "new"
    assert names(final.parent) == ["out"]
    assert final.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777 | 0o055


@pytest.mark.parametrize("error", [RuntimeError("a stage"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with staged(tmp_path / "deep" / "er" / "out", force=False) as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == []


def test_an_existing_bundle_needs_force(tmp_path: Path) -> None:
    final = bundle(tmp_path / "out")
    with pytest.raises(BundleError, match="out exists: add --force to replace it"), staged(final, force=False):
        pytest.fail("must not begin")
    assert (final / "manifest.json").read_text() == "old"


def test_force_replaces_a_bundle_by_a_whole_one(tmp_path: Path) -> None:
    final = bundle(tmp_path / "out")
    with staged(final, force=True) as folder:
        (folder / "file").write_text("new")
        assert names(final) == ["manifest.json"]
    assert names(tmp_path) == ["out"]
    assert names(final) == ["file"]


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path: Path) -> None:
    final = bundle(tmp_path / "out")
    with pytest.raises(BundleError, match="no space left for .*out: .* MB free there"), staged(final, force=True):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["out"]
    assert (final / "manifest.json").read_text() == "old"


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with (
        pytest.raises(BundleError, match="exists and is not a bundle: it is left alone"),
        staged(tmp_path / "out", force=True),
    ):
        pytest.fail("must not begin")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is not a folder"), staged(tmp_path / "file", force=True):
        pytest.fail("must not begin")


def test_a_bundle_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="add --force"), staged(tmp_path / "out", force=False):
        bundle(tmp_path / "out", "theirs")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "manifest.json").read_text() == "theirs"


def killed(code: str, folder: Path) -> None:
    """Run code in a process that ends without any clean-up, as by kill -9."""
    preamble = """
import os
from pathlib import Path
from ropevit_export.bundle import staging

final = Path("out")
"""
    done = subprocess.run([sys.executable, "-c", preamble + code], cwd=folder, check=False)
    assert done.returncode == 9


def test_what_a_killed_builder_left_is_cleared_up_by_the_next(tmp_path: Path) -> None:
    killed("""
with staging.claimed(final), staging.staged(final, force=False) as folder:
    (folder / "weights.data").write_text("half")
    os._exit(9)
""", tmp_path)  # fmt: skip
    assert names(tmp_path) == [".out.lock", ".out.partial"]
    with staged(tmp_path / "out", force=False) as folder:
        assert names(folder) == []
        (folder / "file").write_text("new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("after", ["final.rename", "staging.rename"])
def test_a_replacement_that_was_killed_leaves_one_whole_bundle(tmp_path: Path, after: str) -> None:
    """Where a filesystem can't exchange names: between the two renames there is no bundle, after them there are two."""
    bundle(tmp_path / "out")
    moved = "target.name == '.out.replaced'" if after == "final.rename" else "target.name == 'out'"
    killed(f"""
import errno
from ropevit_export.machine import files
rename = files.rename
def rename_and_die(source, target):
    rename(source, target)
    if {moved}:
        os._exit(9)
def no_exchange(one, other):
    raise OSError(errno.EINVAL, "")
files.rename, files.exchange = rename_and_die, no_exchange
with staging.claimed(final), staging.staged(final, force=True) as folder:
    (folder / "manifest.json").write_text("new")
""", tmp_path)  # fmt: skip
    with staging.claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "manifest.json").read_text() == ("old" if after == "final.rename" else "new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("before", [True, False])
def test_an_exchange_that_was_killed_leaves_one_whole_bundle(tmp_path: Path, before: bool) -> None:
    bundle(tmp_path / "out")
    killed(f"""
from ropevit_export.machine import files
exchange = files.exchange
def exchange_and_die(one, other):
    if not {before}:
        exchange(one, other)
    os._exit(9)
files.exchange = exchange_and_die
with staging.claimed(final), staging.staged(final, force=True) as folder:
    (folder / "manifest.json").write_text("new")
""", tmp_path)  # fmt: skip
    with staging.claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "manifest.json").read_text() == ("old" if before else "new")
    assert names(tmp_path) == ["out"]


def test_a_strange_folder_does_not_cost_the_old_bundle(tmp_path: Path) -> None:
    bundle(tmp_path / ".out.replaced")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(BundleError, match="can't write .*out: Directory not empty"), staging.claimed(tmp_path / "out"):
        pytest.fail("must not begin")
    assert names(tmp_path) == [".out.replaced", "out"]


def test_only_one_builds_a_bundle(tmp_path: Path) -> None:
    waits = []

    def waiting() -> None:
        waits.append(names(tmp_path))
        if len(waits) == 3:
            first.close()

    first = contextlib.ExitStack()
    folder = first.enter_context(staged(tmp_path / "out", force=False))
    with (
        pytest.raises(BundleError, match="out is being built by another process now"),
        staging.claimed(tmp_path / "out"),
    ):
        pytest.fail("must not begin")
    assert folder.is_dir()
    with staging.claimed(tmp_path / "out.partial"), staging.claimed(tmp_path / "ou"):
        pass  # these are others
    assert folder.is_dir()
    with staging.claimed(tmp_path / "out", waiting=waiting):
        assert len(waits) == 3
        assert names(tmp_path / "out") == []


def test_a_lock_that_is_removed_while_we_take_it_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removes the file between our opening and our locking it: ours would then be of nobody's file."""
    take, calls = lock._lock, []

    def taken(fd: int) -> bool:
        calls.append(fd)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
        return take(fd)

    monkeypatch.setattr(lock, "_lock", taken)
    with lock.locked(tmp_path / "lock") as held:
        assert (held, len(calls)) == (True, 2)
        with pytest.raises(BlockingIOError), lock.locked(tmp_path / "lock"):
            pytest.fail("is held")
    assert names(tmp_path) == []


def test_an_interruption_while_the_lock_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = files.open_lock

    def interrupted(path: Path) -> int:
        fd = opened(path)
        signal.raise_signal(signal.SIGINT)
        return fd

    monkeypatch.setattr(files, "open_lock", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt), lock.locked(tmp_path / "lock"):
            pytest.fail("went on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_nothing_of_another_builder_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_lock", lambda fd: False)
    with staged(tmp_path / "out", force=False) as folder:
        with (
            pytest.raises(BundleError, match="partial exists: another process builds .*out, or was killed"),
            staged(tmp_path / "out", force=False),
        ):
            pytest.fail("must not begin")
        assert folder.is_dir()
    assert names(tmp_path) == ["out"]


def test_a_file_in_the_way_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("")
    with pytest.raises(BundleError, match="can't write .*out: "), staged(tmp_path / "engines" / "out", force=False):
        pytest.fail("must not begin")


def parity(**changes: object) -> dict[str, object]:
    metrics = {"relative": 1e-6, "cosine": 1.0, "not_finite": 0}
    return {
        "artifact": "model.onnx", "resolution": [224, 224], "batch": 1, "inputs": "", "reference": "", "runtime": "",
        "metrics": metrics, "tolerance": {"relative": 1e-4, "cosine": 0.9999}, "passed": True,
    } | changes  # fmt: skip


def right() -> dict[str, object]:
    artifact = {
        "kind": "onnx", "path": "model.onnx", "sha256": SHA, "resolutions": [[224, 224]],
        "batch": {"min": 1, "opt": 1, "max": 1}, "precision": "fp32",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 224, 224]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1000]}],
        "built_with": "torch", "targets": [],
    }  # fmt: skip
    return {
        "schema_version": 1, "model": "deit_small_patch16_LS", "rope": "baked", "output": "logits", "classes": 1000,
        "weights": {"source": "random", "revision": None, "sha256": SHA, "trained": False,
                    "remark": "UNTRAINED"},
        "preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic", "crop": 1.0, "layout": "NCHW",
                       "dtype": "float32"},
        "artifacts": [artifact], "parity": [parity()], "files": [], "versions": {},
    }  # fmt: skip


def test_a_right_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(right()))
    assert manifest.read(tmp_path).all_files() == [("model.onnx", SHA)]


def test_a_manifest_of_the_first_release_is_read(tmp_path: Path) -> None:
    """It said neither the patch nor the tokens before the patches: there was one, and the patch was the multiple."""
    old = right()
    old["artifacts"][0]["dynamic"] = {"max": [384, 384], "multiple": 16}  # type: ignore[index]
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    dynamic = manifest.read(tmp_path).artifacts[0].dynamic
    assert dynamic is not None
    assert (dynamic.patch, dynamic.prefix) == (16, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"rope": "magic"}, "rope: Input should be 'baked'"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        (
            {"weights": {"source": "x", "revision": None, "sha256": "abc", "trained": True, "remark": None}},
            "weights.sha256",
        ),
        ({"files": [{"kind": "report", "path": "../../etc/passwd", "sha256": SHA}]}, "files.0.path: "),
        ({"parity": []}, "the file: Value error, no parity for model.onnx"),
        (
            {"parity": [parity(passed=False)]},
            "parity.0: Value error, passed is False, its metrics and tolerance say True",
        ),
        (
            {"parity": [parity(metrics={"relative": 9, "cosine": 1, "not_finite": 0})]},
            "parity.0: Value error, passed is True",
        ),
        ({"parity": [parity(resolution=[0, 0])]}, "parity.0.resolution.0: "),
        ({"artifacts": None}, "artifacts: "),
    ],
)
def test_a_wrong_manifest_names_the_field(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(right() | change))
    with pytest.raises(BundleError, match=f"is not a manifest of schema 1: {sentence}"):
        manifest.read(tmp_path)


def test_a_truncated_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(right())[:100])
    with pytest.raises(BundleError, match="is not a manifest of schema 1: the file: Invalid JSON"):
        manifest.read(tmp_path)


def test_the_golden_file_is_plain_safetensors(tmp_path: Path) -> None:
    image, expected = np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 5), np.float32)
    golden.write(tmp_path / "golden", image, {"logits": expected}, {})
    assert {name: each.shape for name, each in load_file(tmp_path / "golden").items()} == {
        "image": (2, 4, 4, 3),
        "expected": (2, 5),
    }
    (tmp_path / "cut").write_bytes((tmp_path / "golden").read_bytes()[:50])
    with pytest.raises(BundleError, match="is not a golden file"):
        golden.read(tmp_path / "cut", ["logits"])


def test_every_field_of_the_manifest_is_described() -> None:
    page = (Path(__file__).parents[1] / "docs" / "bundle.md").read_text(encoding="utf-8")
    models = [each for each in vars(manifest).values() if isinstance(each, type) and issubclass(each, BaseModel)]
    fields = {name for model in models for name in model.model_fields}
    assert {"schema_version", "prefix", "crop_mode", "targets"} < fields
    assert sorted(name for name in fields if f"`{name}`" not in page) == []
