"""What a release is made of: versions that agree, a script that refuses, Dockerfiles without a lint."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "ropevit_export/__init__.py", "CITATION.cff", "CHANGELOG.md")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/release over a small repository that can be released."""
    loader = SourceFileLoader("release", str(ROOT / "scripts" / "release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n## {VERSION}\n\n- Something.\n")
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    subprocess.run(["git", "update-index", "--assume-unchanged", path.name], cwd=path.parent, check=True)


def test_a_release_that_can_be_made(script: ModuleType) -> None:
    assert script.obstacles(VERSION) == []


def test_what_is_in_the_way_of_a_release(script: ModuleType) -> None:
    change(script.ROOT / "CITATION.cff", f"version: {VERSION}", "version: 9.9")
    assert script.obstacles(VERSION) == [f"CITATION.cff has version 9.9, pyproject.toml {VERSION}: make them one."]
    change(script.ROOT / "CITATION.cff", "version: 9.9", f"version: {VERSION}")
    change(script.ROOT / "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- News.\n")
    assert [each.split(":")[0] for each in script.obstacles(VERSION)] == ["CHANGELOG.md has unreleased changes"]
    change(script.ROOT / "CHANGELOG.md", f"## {VERSION}\n\n- Something.\n", "")
    assert [each.split(":")[0] for each in script.obstacles(VERSION)] == [
        f"CHANGELOG.md has nothing of {VERSION}",
        "CHANGELOG.md has unreleased changes",
    ]
    (script.ROOT / "new").touch()
    assert script.obstacles(VERSION)[0] == "1 files are not committed: commit or remove them."
    subprocess.run(["git", "tag", f"v{VERSION}"], cwd=script.ROOT, check=True)
    assert script.obstacles(VERSION)[1].startswith(f"v{VERSION} is tagged already")


def test_a_source_archive_says_nothing_of_when_and_by_whom_it_was_packed(script: ModuleType, tmp_path: Path) -> None:
    made: list[bytes] = []
    for folder, moment in ((tmp_path / "a", 1_000_000_000), (tmp_path / "b", 1_100_000_000)):
        (folder / "x").mkdir(parents=True)
        for name in ("two", "one"):
            (folder / "x" / name).write_text(name)
            os.utime(folder / "x" / name, (moment, moment))
        with tarfile.open(folder / "x.tar.gz", "w:gz") as archive:
            for name in ("two", "one") if moment % 3 else ("one", "two"):
                archive.add(folder / "x" / name, name)
        assert not made or (folder / "x.tar.gz").read_bytes() != made[0]
        script.without_times(folder / "x.tar.gz", 1_200_000_000)
        made.append((folder / "x.tar.gz").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(folder / "x.tar.gz") as archive:
        assert [(each.name, each.mtime, each.uid) for each in archive] == [
            ("one", 1_200_000_000, 0),
            ("two", 1_200_000_000, 0),
        ]
        content = archive.extractfile("one")
        assert content is not None
        assert content.read() == b"one"


def test_versions_agree() -> None:
    for name, line in (
        ("ropevit_export/__init__.py", f'__version__ = "{VERSION}"'),
        ("CITATION.cff", f"version: {VERSION}"),
    ):
        assert line in (ROOT / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["cpu", "tensorrt"])
def test_dockerfiles_have_no_lint(name: str, tmp_path: Path) -> None:
    """hadolint reads them; what they build can only be tried where Docker is."""
    program = Path(sys.executable).parent / "hadolint"
    file = ROOT / "docker" / f"{name}.Dockerfile"
    assert subprocess.run([program, file], check=False).returncode == 0
    worse = tmp_path / "Dockerfile"
    worse.write_text(file.read_text().replace("python:3.11-slim-bookworm", "python"))
    assert subprocess.run([program, worse], check=False, capture_output=True).returncode == 1
