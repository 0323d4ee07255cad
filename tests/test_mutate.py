"""`scripts/mutate`, on a repository of one module."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mutation import cpp_faults, python_faults
from tests.mutation.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "mutate"
MODULE = '''"""Sums."""

from functools import cache

LIMIT: int = 3


def shifted(x: int, by: int = 1) -> int:
    """x - 2, it is not."""
    if x > LIMIT:
        raise ValueError(f"{x + 1} is more than {LIMIT - 1}")
    return x * 2 + by


@cache
def unseen(x: int) -> int:
    return x - 5
'''
TESTS = """from functools import cache

import pytest

from ropevit_export import sums


@cache
def once() -> int:
    return sums.unseen(7)


def test_not_exact() -> None:
    assert once() > 0


def test_shifted() -> None:
    assert [sums.shifted(x) for x in (1, 3)] == [3, 7]
    with pytest.raises(ValueError, match="more"):
        sums.shifted(4)


def test_once_more() -> None:
    assert once()
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("mutate", str(SCRIPT))
    spec = importlib.util.spec_from_loader("mutate", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("there is no git, which knows the files to copy")
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "tests" / "mutation", root / "tests" / "mutation", ignore=shutil.ignore_patterns("*.pyc"))
    (root / "ropevit_export").mkdir()
    for name, text in {
        "ropevit_export/__init__.py": "",
        "ropevit_export/sums.py": MODULE,
        "tests/__init__.py": "",
        "tests/test_sums.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-q'\nmarkers = ['slow: s', 'gpu: g']\n",
        ".gitignore": "__pycache__/\n.hypothesis/\n",
    }.items():
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.fixture
def mutate(
    script: ModuleType, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The exit code and the report."""
    monkeypatch.setattr(script, "ROOT", repository)

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "report.json"
        given = ["--files", "ropevit_export", "--work", str(tmp_path / "work"), "--workers", "1", "--json", str(out)]
        monkeypatch.setattr(sys, "argv", ["mutate", *given, *arguments])
        return script.main(warm=False), json.loads(out.read_text())

    return run


def digest(root: Path) -> str:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and ".git" not in path.parts]
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_what_tests_see_is_caught_and_what_they_do_not_is_named(
    mutate: Callable[..., tuple[int, dict[str, Any]]], repository: Path, tmp_path: Path
) -> None:
    before = digest(repository)
    code, made = mutate("--seed", "4", "--count", "4")
    found = {each["name"].removeprefix("ropevit_export/sums.py:"): each for each in made["results"]}
    survived = {name for name, each in found.items() if each["outcome"] == "survived"}
    changes = {name.partition(" ")[2] for name in survived}
    assert changes <= {"- → +", "5 → 6", "5 → 4", "> → >="}, survived
    assert found["12:14 * → /"]["outcome"] == "caught"
    assert found["12:14 * → /"]["by"] == "tests/test_sums.py::test_shifted"
    (last,) = [each for name, each in found.items() if name.startswith("17:14")]
    # Two tests share what is worked out once: both have run, and then the third of their file.
    assert (last["outcome"], last["tests"]) == ("survived", 3)
    assert code == 1
    assert made["files"]["ropevit_export/sums.py"]["faults"] == len(found)
    assert digest(repository) == before
    lines = (tmp_path / "work" / "results.jsonl").read_text().splitlines()
    again = mutate("--seed", "4", "--count", "4")
    assert again == (code, made)
    assert (tmp_path / "work" / "results.jsonl").read_text().splitlines() == lines
    # A new test may notice what survived.
    more = repository / "tests" / "test_more.py"
    more.write_text("from ropevit_export import sums\n\n\ndef test_more() -> None:\n    assert sums.unseen(7) == 2\n")
    code, made = mutate("--seed", "4", "--count", "4")
    assert code == 0
    assert [each["by"] for each in made["results"] if ":17:14" in each["name"]] == ["tests/test_more.py::test_more"]


def test_tests_must_pass_before(mutate: Callable[..., Any], repository: Path) -> None:
    (repository / "tests" / "test_wrong.py").write_text("def test_wrong() -> None:\n    assert 1 == 2\n")
    with pytest.raises(SystemExit, match=r"must pass before faults are planted.\n.*test_wrong assert 1 == 2"):
        mutate()


def test_a_seed_draws_the_same_faults_wherever_the_lines_are(script: ModuleType, tmp_path: Path) -> None:
    def drawn(seed: int) -> list[tuple[str, str]]:
        python, cpp, _ = script.chosen(tmp_path, script.sources(tmp_path, ["."]), seed, 5)
        return [(fault.text, fault.change) for fault in (*python, *cpp)]

    (tmp_path / "sums.py").write_text(MODULE)
    (tmp_path / "sums.cpp").write_text("int sum(int a) {\n  return a + 1;\n}\n")
    first = drawn(0)
    assert len(first) == 4 + 2
    assert drawn(0) == first != drawn(1)
    (tmp_path / "sums.py").write_text("import os\n" + MODULE)
    assert drawn(0) == first


def test_faults_of_python_are_of_what_decides_numbers() -> None:
    found = [fault.name.removeprefix("sums.py:") for fault in python_faults.faults("sums.py", MODULE)]
    assert found == [
        "5:14 3 → 2", "5:14 3 → 4", "8:31 1 → 0", "8:31 1 → 2",
        "10:8 x > LIMIT → (not (x > LIMIT))", "10:10 > → <", "10:10 > → >=", "12:14 * → /", "12:16 2 → 1",
        "12:16 2 → 3", "12:18 + → -", "17:14 - → +", "17:16 5 → 4", "17:16 5 → 6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a[..., -1]", ["-1 → -2", "-1 → 0", "-1 → 1"]),
        ("a[0]", ["0 → 1"]),
        ("f(a, b)", ["f(a, b) → pass", "a, b → b, a"]),
        ("f('a', b)", ["f('a', b) → pass"]),
        ("h, w = w, h", ["w, h → h, w"]),
        ("b = not a", ["not a → a"]),
        ("b = a if a is None else c", ["is → is not"]),
        ("b = a is not None and c", ["is not → is", "and → or"]),
        ("b = 1e-6", ["1e-6 → 2e-06"]),
        ("assert a < b", []),
        ("zip(a, b, strict=True)", ["zip(a, b, strict=True) → pass", "a, b → b, a"]),
        ("log.info(a + 1)", []),
        ("'×'; b = a + c", ["+ → -"]),
        ("def f(x):\n    x = x + 1", ["x = x + 1 → pass", "+ → -", "1 → 0", "1 → 2"]),
        ("def f():\n    x = 1", ["1 → 0", "1 → 2"]),
        ("b += 1", ["b += 1 → pass", "+= → -=", "1 → 0", "1 → 2"]),
    ],
)
def test_a_fault_is_one_change(source: str, changes: list[str]) -> None:
    found = python_faults.faults("a.py", source)
    assert [fault.change for fault in found] == changes
    for fault in found:
        planted = fault.planted(source)
        assert planted != source
        assert not python_faults.same_code(planted, source)


def test_the_same_code_is_no_fault() -> None:
    assert python_faults.same_code("a = 1 + 1\n", "a  =  2  # so\n")
    assert not python_faults.same_code("a = 1", "a = 1.0")
    assert not python_faults.same_code("def f(a, b): return a", "def f(a, b): return b")


def test_faults_of_cpp() -> None:
    source = """// a + b
#define N (1 + 2)
std::vector<int> f(const std::string& text, int* a) {
  if (text == "a + b") throw Error("needs " + std::to_string(1));
  out.push_back(a[0] * 2);
  return a->b && !c ? 0x10u : 1.5F;
}
"""
    assert [fault.change for fault in cpp_faults.faults("a.cpp", source)] == [
        "out.push_back(a[0] * 2); → ;", "0 → 1", "* → /", "2 → 1", "2 → 3", "&& → ||", "! → ", "0x10u → 15u",
        "0x10u → 17u", "1.5F → 3.0F",
    ]  # fmt: skip


def test_faults_that_change_nothing_are_still_there() -> None:
    found = {}
    for file in {key[0] for key in EQUIVALENT}:
        source = (ROOT / file).read_text(encoding="utf-8")
        faults = (python_faults if file.endswith(".py") else cpp_faults).faults(file, source)
        found[file] = {fault.key for fault in faults}
    assert [key for key in EQUIVALENT if key not in found[key[0]]] == []
