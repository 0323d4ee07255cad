"""Which tests can notice a fault in a line: those that execute it. They are recorded once, by file of tests."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.mutation.fault import Fault
from tests.mutation.recorder import IMPORT
from tests.mutation.tree import Tree

PACKAGE = "ropevit_export"
# Longer than any file of tests takes, compiling the C++ library included.
LONGEST = 3600.0


class Selection:
    """Of what `record` gives."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        self.tests: dict[str, float] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._uses: defaultdict[str, set[str]] = defaultdict(set)
        self._lines: defaultdict[str, defaultdict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for name, found in recorded.items():
            for test, seconds in found["seconds"].items():
                self._seconds[test] = max(self._seconds[test], seconds)
            for user, used in found["uses"].items():
                self._uses[user] |= set(used)
            for file, lines in found["lines"].items():
                for line, users in lines.items():
                    self._lines[file][int(line)] |= set(users)
            self.tests |= {test: 0.0 for test in found["seconds"] if test.startswith(f"{name}::")}
        self._all = {test: self._closure(test) for test in self.tests}
        self.tests = {test: sum(self._seconds[each] for each in used) for test, used in self._all.items()}

    def _closure(self, test: str) -> set[str]:
        found, left = {test}, [test]
        while left:
            for used in self._uses[left.pop()] - found:
                found.add(used)
                left.append(used)
        return found

    def of(self, fault: Fault) -> list[str]:
        """Tests that execute the statement of a fault, or, where it is outside of functions, any of its file; the
        quickest first.
        """
        lines = self._lines[fault.file]
        chosen = range(fault.first, fault.last + 1) if fault.function else list(lines)
        users = set().union(*(lines[line] for line in chosen if line in lines)) - {IMPORT}
        return self.ordered(test for test, used in self._all.items() if used & users)

    def seconds(self, tests: Iterable[str]) -> float:
        """What they take one after the other: what they share once."""
        return sum(self._seconds[each] for each in set().union(*(self._all[test] for test in tests)))

    def within(self, tests: Sequence[str], limits: Sequence[float]) -> list[int]:
        """How many of the first tests take no longer than each limit, one at least."""
        counts: list[int] = []
        total, done = 0.0, set[str]()
        for count, test in enumerate(tests):
            new = self._all[test] - done
            total += sum(self._seconds[each] for each in new)
            while count and len(counts) < len(limits) and total > limits[len(counts)]:
                counts.append(count)
            if len(counts) == len(limits):
                break
            done |= new
        return counts + [len(tests)] * (len(limits) - len(counts))

    def ordered(self, tests: Iterable[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self.tests[test], test))

    def related(self, root: Path, fault: Fault) -> list[str]:
        """All tests of the files that import the module of a fault."""
        module = fault.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        files = {name for name in {test.partition("::")[0] for test in self.tests} if module in _imports(root / name)}
        return self.ordered(test for test in self.tests if test.partition("::")[0] in files)


@functools.cache
def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))


def store_of(root: Path, folder: Path) -> Path:
    """Where what is recorded of these sources is kept."""
    return folder / _digest(root, [path for path in _sources(root) if not path.name.startswith("test_")])


def suite(root: Path) -> str:
    """Of all tests, those of C++ too."""
    paths = sorted((root / "cpp" / "tests").rglob("*.[ch]*"))
    return _digest(root, [*paths, *sorted((root / "tests").rglob("*.py"))])


def record(
    trees: Sequence[Tree], root: Path, store: Path, files: Sequence[str], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """By test file what `Recorder` wrote; what was recorded of the same sources before is read again."""
    store.mkdir(parents=True, exist_ok=True)
    kept = {name: store / f"{name.replace('/', '-')}-{_digest(root, [root / name])}.json" for name in files}
    wanted: queue.Queue[str] = queue.Queue()
    for name in sorted(files, key=lambda name: -(root / name).stat().st_size):
        if not kept[name].exists():
            wanted.put(name)
    faults: list[str] = []

    def work(tree: Tree) -> None:
        while True:
            try:
                name = wanted.get_nowait()
            except queue.Empty:
                return
            partial = kept[name].with_suffix(".partial").resolve()
            package = [str(tree.folder / PACKAGE / "*")]
            answer = tree.pytest([name], None, LONGEST, traces=store / "traces", record=[str(partial), *package],
                                 environment=environment, compiles=True)  # fmt: skip
            print(f"recorded {name}: {answer.ran} tests, {answer.seconds:.0f} s, {answer.end}", file=sys.stderr)
            if answer.end in ("OK", "NO_TESTS_COLLECTED"):
                partial.rename(kept[name])
            else:
                faults.append(f"{name}: {answer.end}, {answer.failed} {answer.why}")

    threads = [threading.Thread(target=work, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise SystemExit("error: the tests must pass before faults are planted.\n" + "\n".join(faults))
    found = {name: json.loads(path.read_text()) for name, path in kept.items()}
    # A trace is made once, perhaps by a test file as it was before.
    older = {path.name: json.loads(path.read_text()) for path in store.glob("*.json") if path not in kept.values()}
    return {**older, **found}


def _sources(root: Path) -> list[Path]:
    return sorted(
        path for top in (PACKAGE, "tests") for path in (root / top).rglob("*.py") if "mutation" not in path.parts
    )


def _digest(root: Path, paths: Iterable[Path], more: str = "") -> str:
    found = hashlib.sha256(more.encode())
    for path in paths:
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
