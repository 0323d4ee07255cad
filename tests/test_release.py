"""What a release is made of: versions that agree, a script that refuses, Dockerfiles without a lint."""

from __future__ import annotations

import importlib.util
import os
import re
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


def module_of(name: str) -> ModuleType:
    """A script without an extension."""
    loader = SourceFileLoader(name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/release over a small repository that can be released."""
    module = module_of("release")
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


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    """Versions by name of requirements, where they have no marker or one of this kind of machine."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def test_the_lock_has_the_tested_versions_and_hashes_of_everything_that_is_needed() -> None:
    locked, tested = pinned("requirements.lock"), pinned("constraints.txt")
    elsewhere = {"colorama", "httpx2-jsfetch", "onnxruntime"}  # of Windows, of a browser, of ARM
    assert {name: tested.get(name) for name in locked.keys() - elsewhere - {"setuptools"}} == {
        name: version for name, version in locked.items() if name not in elsewhere | {"setuptools"}
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["openvino"]]
    assert {normal(re.split(r"[><=!\[; ]", each)[0]) for each in needed} <= locked.keys()
    for each in re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", each), each
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_a_licence_that_was_not_allowed_is_named() -> None:
    sbom = module_of("sbom")

    def package(name: str, *licences: dict[str, object]) -> dict[str, object]:
        return {"name": name, "version": "1.0", "licenses": licences}

    for allowed in (
        package("a", {"license": {"id": "MIT"}}),
        package("a", {"expression": "MIT AND (Apache-2.0 WITH LLVM-exception OR BSD-2-Clause)"}),
        package("a", {"license": {"name": "License :: OSI Approved :: BSD License"}}),
        package("nvidia-cublas", {"license": {"name": "LicenseRef-NVIDIA-Proprietary"}}),
        package("tensorrt_rtx_cu13_libs"),
    ):
        assert sbom.objection(allowed) is None
    for refused, said in (
        (package("a"), "a 1.0 says no licence"),
        (package("a", {"license": {"id": "GPL-3.0-only"}}), "a 1.0 has the licence GPL-3.0-only"),
        (package("a", {"expression": "MIT AND AGPL-3.0-only"}), "has the licence MIT AND AGPL-3.0-only"),
        (package("a", {"license": {"id": "MIT"}}, {"license": {"name": "License :: Other/Proprietary License"}}),
         "has the licence License :: Other/Proprietary License"),
    ):  # fmt: skip
        assert said in str(sbom.objection(refused))
