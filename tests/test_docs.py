"""README and docs/: links resolve, generated files are fresh, every command runs and prints what is shown.

A page's ```sh and ```python blocks are run one after the other, each in a process of its own, from the root of a copy
of the repository. A ```text block after one is what it prints, stdout and stderr as they come: numbers with a point or
an exponent may be others, `…` is anything, a line of its own any lines. The first line of a block may be

    # needs a GPU       or something else that a test has not: it is not run, and listed here in NOT_RUN
    # fails with 2      the exit code
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbclient
import nbformat
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ropevit_export.bundle import manifest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# docs/cpp.md has a test of its own, tests/test_cpp.py, which has built the library already.
PAGES = [ROOT / "README.md", ROOT / "engines" / "README.md", *sorted(DOCS.glob("*.md"))]
ELSEWHERE = {"docs/cpp.md"}
# By page, what its blocks that are not run need. All of the README's are .ci/run's.
NOT_RUN = {
    "README.md": ["a fresh virtual environment", "a fresh virtual environment", "a fresh virtual environment"],
    "docs/benchmarks.md": ["a GPU"],
    "docs/getting-started.md": ["a fresh virtual environment", "the weights' hub"],
    "docs/running.md": ["a GPU"],
    "docs/serving.md": ["Triton", "Ray", "that service", "Ray"],
}
RUN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
LANGUAGES = {*RUN, "text", "cpp", "", "{toctree}", "{click}", "{eval-rst}"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def repository(pattern: str = "*") -> list[Path]:
    """Its files, those that are not committed yet among them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", pattern], cwd=ROOT, capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


# Commands -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """A block to run, what it needs that a test has not, its exit code, and what is shown of its output."""

    language: str
    source: str
    line: int
    needs: str | None
    code: int
    shown: str | None


def steps(page: Path) -> list[Step]:
    fences = [token for token in tokens(page) if token.type == "fence"]
    found = []
    for number, fence in enumerate(fences):
        if fence.info not in RUN:
            continue
        after = fences[number + 1] if number + 1 < len(fences) else None
        needs = re.match(r"# needs (.*)\n", fence.content)
        fails = re.match(r"# fails with (\d+)\n", fence.content)
        assert fence.map is not None
        found.append(
            Step(
                language=fence.info,
                source=fence.content,
                line=fence.map[0] + 1,
                needs=needs[1] if needs else None,
                code=int(fails[1]) if fails else 0,
                shown=after.content if after and after.info == "text" else None,
            )
        )
    if page.name == "README.md" and page.parent == ROOT:
        for index in (0, 1, 3):  # those that install, and what follows from the last
            found[index] = dataclasses.replace(found[index], needs="a fresh virtual environment")
    return found


NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)+(?:e[+-]?\d+)?|\d+e[+-]?\d+")


def masked(line: str) -> str:
    """Without what another machine or release would print: digits of measured numbers, widths of columns."""
    return " ".join(re.sub(r"[━─]+", "─", NUMBER.sub("#", line)).split())


def is_shown(shown: str, got: str) -> bool:
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, masked(line).split("…"))) + "\n"
        for line in shown.strip("\n").split("\n")
    )
    lines = "".join(f"{masked(line)}\n" for line in got.strip("\n").split("\n"))
    return re.fullmatch(pattern, lines) is not None


def copy_of_the_repository(folder: Path) -> Path:
    for file in repository():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run_page(page: Path, folder: Path) -> Iterator[tuple[Step, int, str]]:
    """Of each block that is run: its exit code and what it printed."""
    root = copy_of_the_repository(folder)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}  # fmt: skip
    for step in steps(page):
        if step.needs is None:
            done = subprocess.run(
                [*RUN[step.language], step.source], cwd=root, env=environment, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            yield step, done.returncode, done.stdout


TO_RUN = [page for page in PAGES if any(step.needs is None for step in steps(page)) and name_of(page) not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=name_of)
def test_commands_run_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    for step, code, got in run_page(page, tmp_path):
        assert code == step.code, f"{name_of(page)}, line {step.line}: exit code {code}\n{got}"
        if step.shown is not None:
            assert is_shown(step.shown, got), f"{name_of(page)}, line {step.line}, prints\n{got}"


def test_what_is_not_run_is_listed() -> None:
    found = {name_of(page): [step.needs for step in steps(page) if step.needs] for page in PAGES}
    assert {page: needs for page, needs in found.items() if needs} == NOT_RUN


def test_commands_stand_in_blocks_that_are_run() -> None:
    """No block of another language, which would not be run."""
    fences = [
        (name_of(page), token.info.split(" ")[0]) for page in PAGES for token in tokens(page) if token.type == "fence"
    ]
    assert [fence for fence in fences if fence[1] not in LANGUAGES] == []
    plain = [token for page in PAGES for token in tokens(page) if token.type == "fence" and not token.info]
    assert [
        token.content for token in plain if re.search(r"^(\$|ropevit-export|pip|python|scripts/)", token.content, re.M)
    ] == []
    assert [name for name, info in fences if info == "sh"].count("README.md") > 2


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = script[script.index("command_of_readme() {") : script.index("for block in")]
    for number, step in enumerate(steps(ROOT / "README.md"), start=1):
        said = subprocess.run(["bash", "-c", f"{function}\ncommand_of_readme {number}"], cwd=ROOT, capture_output=True,
                              text=True, check=True)  # fmt: skip
        assert said.stdout == step.source
    assert "for block in 1 2 3 4; do" in script


@pytest.mark.parametrize(
    ("shown", "got", "same"),
    [
        ("a 1.5 s", "a 2.25 s", True),
        ("a 1.5e-06", "a 3e-7", True),
        ("12 of 12 fused", "11 of 12 fused", False),
        ("a 1.5 s", "b 2.25 s", False),
        ("a", "a\nb", False),
        ("a\n…", "a\nb\nc", True),
        ("…\nb", "a\nb\nc", False),
        ("a … c", "a b c", True),
        ("a … c", "a b d", False),
        ("│ x  │ 1.5  │", "│ x │ 10.25 │", True),
        ("(1, 10) float32", "(1, 11) float32", False),
    ],
)
def test_other_output_is_seen(shown: str, got: str, same: bool) -> None:
    assert is_shown(shown, got) is same


# Links ----------------------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges and MyST make them."""
    found: list[str] = []
    listed = tokens(page)
    for number, token in enumerate(listed):
        if token.type == "heading_open":
            text = "".join(child.content for child in listed[number + 1].children or () if child.type != "softbreak")
            slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            same = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
            found.append(f"{slug}-{same}" if same else slug)
    return set(found)


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrs.get("href" if child.type == "link_open" else "src")
            if target is not None:
                yield str(target)


def broken(page: Path, target: str) -> str | None:
    """Why a link leads nowhere; of one to another site only whether it is one."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        is_site = parts.scheme == "https" and re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc)
        return None if is_site else "not an https address"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.exists() or ROOT not in (path, *path.parents):
        return "no such file"
    if parts.fragment and path.suffix == ".md" and parts.fragment not in slugs(path):
        return "no such heading"
    return None


def test_every_link_resolves() -> None:
    pages = repository("*.md")
    assert len(pages) > 15
    found = [(name_of(page), target, why) for page in pages for target in links(page) if (why := broken(page, target))]
    assert found == []


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("docs/nothing.md", "no such file"),
        ("../somewhere", "no such file"),
        ("docs/bundle.md#nothing", "no such heading"),
        ("docs/bundle.md#golden-files", None),
        ("#what-you-get", None),
        ("http://example.com", "not an https address"),
        ("https://example", "not an https address"),
        ("https://example.com/a#b", None),
    ],
)
def test_a_broken_link_is_seen(target: str, why: str | None) -> None:
    assert broken(ROOT / "README.md", target) == why


def test_every_page_is_in_the_contents() -> None:
    listed = {
        line for token in tokens(DOCS / "index.md") if token.info == "{toctree}" for line in token.content.split()
    }
    pages = {path.stem for path in (*DOCS.glob("*.md"), *DOCS.glob("*.ipynb"))} - {"index"}
    assert pages == {line for line in listed if not line.startswith(":")} - {"Use", "Trust", "Reference"}


# Made by scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["models_doc", "manifest_schema", "faults_doc"])
def test_what_a_script_writes_is_fresh(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("manifest.json", manifest.Manifest),
        ("Preprocess", manifest.PreprocessEntry),
        ("Artifacts", manifest.ArtifactEntry),
    ],
)
def test_the_page_of_the_manifest_has_every_field(heading: str, model: type[manifest.Manifest]) -> None:
    text = (DOCS / "bundle.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(model.model_fields)


# The site and the notebook --------------------------------------------------------------------------------------------


class Anchors(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value and tag in ("a", "img"):
                self.targets.append(value)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_resolve(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(
        [ROOT / "scripts" / "docs", tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path: Anchors(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 20
    wrong = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            ids = pages[other].ids if other in pages else set()
            if not other.exists() or (parts.fragment and other in pages and unquote(parts.fragment) not in ids):
                wrong.append((path.name, target))
    assert wrong == []


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept = nbformat.read(DOCS / "from_export_to_prediction.ipynb", as_version=4)
    made = nbformat.from_dict(kept)
    nbclient.NotebookClient(
        made, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()

    def texts(notebook: Any) -> list[str]:
        outputs = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
        results = [each for each in outputs if each.get("name") != "stderr"]  # libraries' warnings
        return [each.get("text") or each.get("data", {}).get("text/plain", "") for each in results]

    shown, got = texts(kept), texts(made)
    assert shown
    assert len(shown) == len(got)
    assert [pair for pair in zip(shown, got, strict=True) if not is_shown(*pair)] == []
