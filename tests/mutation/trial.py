"""Whether tests notice a fault: it is planted in a copy, and they run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutation.fault import Fault
from tests.mutation.selection import Selection
from tests.mutation.server import Answer
from tests.mutation.tree import Tree

# Of a fault's tests the quickest that take so long together come first; most faults are noticed by one of these.
FIRST_SECONDS = 60.0
# Those of a test that never ends: so many times what the tests took, and a start.
TIMES, START_SECONDS = 3.0, 60.0
SLOW_SECONDS = 900.0
# What torch traces does not change with them, so that traces of the whole tree serve.
TRACED_ALIKE = ("ropevit_export/passes/", "ropevit_export/parity/", "ropevit_export/images/")
CPP_TESTS = "tests/test_cpp.py"


@dataclass(frozen=True, kw_only=True)
class Result:
    """`outcome`: caught, survived, time (caught: the tests did not end), same (it is no fault: the machine code is the
    same), no build, or open, where only the first of its tests have run. `by`: the test that failed, and `why`.
    """

    name: str
    file: str
    outcome: str
    tests: int
    seconds: float
    by: str = ""
    why: str = ""

    @property
    def counts(self) -> bool:
        return self.outcome not in ("same", "no build")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Confirmed:
    """Tests that fail without a fault too prove nothing: each that noticed one runs alone on the whole tree, once."""

    def __init__(self) -> None:
        self.right: set[str] = set()
        self.wrong: dict[str, str] = {}
        self._lock = threading.Lock()

    def holds(self, tree: Tree, test: str, traces: Path, arguments: Sequence[str] = ()) -> bool:
        if test not in self.right and test not in self.wrong:
            alone = tree.pytest([*arguments, test], None, SLOW_SECONDS, traces=traces)
            with self._lock:
                if alone.end == "OK":
                    self.right.add(test)
                else:
                    self.wrong[test] = f"{alone.end}: {alone.why}"
                    print(f"{test} fails without a fault: {self.wrong[test]}", file=sys.stderr)
        return test in self.right


def stages(selection: Selection, root: Path, fault: Fault) -> list[list[str]]:
    """The first of the tests that execute a fault; the others; and those of related files."""
    executing = selection.of(fault)
    total, count = 0.0, 0
    while count < len(executing) and (not count or total + selection.tests[executing[count]] <= FIRST_SECONDS):
        total += selection.tests[executing[count]]
        count += 1
    related = [test for test in selection.related(root, fault) if test not in set(executing)]
    return [executing[:count], executing[count:], related]


def python(tree: Tree, root: Path, fault: Fault, selection: Selection, confirmed: Confirmed, traces: Path, *,
           whole: bool) -> Result:  # fmt: skip
    """`whole`: after the first tests all others too; slow ones where no other executes the fault."""
    source = (root / fault.file).read_text(encoding="utf-8")
    kept = traces if fault.file.startswith(TRACED_ALIKE) else None
    ran, seconds = 0, 0.0
    steps = stages(selection, root, fault)
    executed = bool(steps[0])
    for chosen in steps if whole else steps[:1]:
        chosen = [test for test in chosen if test not in confirmed.wrong]
        while chosen:
            limit = START_SECONDS + TIMES * sum(selection.tests[test] for test in chosen)
            with tree.planted(fault.file, fault.planted(source)):
                answer = tree.pytest(["-x", *_files(chosen)], chosen, limit, traces=kept)
            ran, seconds = ran + answer.ran, seconds + answer.seconds
            if answer.end == "OK":
                break
            test = answer.failed if "::" in answer.failed else ""
            if answer.end != "time" and test and not confirmed.holds(tree, test, traces):
                chosen = chosen[chosen.index(test) + 1 :]  # those before it have passed
                continue
            return _caught(fault, answer, ran, seconds)
    if whole and not executed:
        files = _files(selection.related(root, fault))
        if files:
            with tree.planted(fault.file, fault.planted(source)):
                answer = tree.pytest(["-x", "-m", "slow and not gpu", *files], None, SLOW_SECONDS, traces=kept)
            ran, seconds = ran + answer.ran, seconds + answer.seconds
            if answer.end not in ("OK", "NO_TESTS_COLLECTED"):
                return _caught(fault, answer, ran, seconds)
    outcome = "survived" if whole else "open"
    why = "" if executed else "no default test executes it"
    return Result(name=fault.name, file=fault.file, outcome=outcome, tests=ran, seconds=round(seconds, 1), why=why)


def _files(tests: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def _caught(fault: Fault, answer: Answer, ran: int, seconds: float) -> Result:
    return Result(
        name=fault.name, file=fault.file, outcome="time" if answer.end == "time" else "caught", tests=ran,
        seconds=round(seconds, 1), by=answer.failed or answer.end, why=answer.why,
    )  # fmt: skip


class Cpp:
    """The C++ library of a copy, compiled once and then again as faults ask, and the cases that its tests read."""

    def __init__(self, tree: Tree, root: Path) -> None:
        self.tree = tree
        self._root = root
        self._folder = tree.folder / "build" / "cpp"
        self._cases = tree.folder / "build" / "cases"
        self._python("from tests import test_cpp; test_cpp.build(test_cpp.BUILD)")
        if not self._cases.exists():
            partial = self._cases.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._python(
                "import sys; from pathlib import Path; from tests import cpp_cases\n"
                "for name, case in cpp_cases.CASES.items():\n"
                "    case.default and cpp_cases.make(name, Path(sys.argv[1]), 1)",
                str(partial),
            )
            partial.rename(self._cases)
        self.environment = {"ROPEVIT_TEST_CASES": str(self._cases)}
        self._made = self._digest()

    def _python(self, code: str, *arguments: str) -> None:
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=self.tree.folder, env=self.tree.environment,
                       check=True)  # fmt: skip

    def _build(self) -> str:
        """What the compiler said, "" if it compiled."""
        cache = (self._folder / "CMakeCache.txt").read_text()
        (cmake,) = re.findall("^CMAKE_COMMAND:INTERNAL=(.*)$", cache, re.MULTILINE)
        done = subprocess.run([cmake, "--build", self._folder, "-j", "2"], capture_output=True, text=True, check=False)
        return done.stdout[-2000:] if done.returncode else ""

    def _digest(self) -> str:
        found = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and os.access(path, os.X_OK) and "CMakeFiles" not in path.parts:
                found.update(path.read_bytes())
        return found.hexdigest()

    def trial(self, fault: Fault, selection: Selection, confirmed: Confirmed, traces: Path) -> Result:
        tests = [test for test in selection.ordered(selection.tests) if test.startswith(f"{CPP_TESTS}::")]
        limit = START_SECONDS + TIMES * sum(selection.tests[test] for test in tests)
        source = (self._root / fault.file).read_text(encoding="utf-8")
        with self.tree.planted(fault.file, fault.planted(source)):
            said = self._build()
            outcome = "no build" if said else "same" if self._digest() == self._made else ""
            if outcome:
                why = next(iter(re.findall("error: (.*)", said)), "")
                return Result(name=fault.name, file=fault.file, outcome=outcome, tests=0, seconds=0.0, why=why)
            answer = self._tests(tests, limit, traces)
        ran, seconds = answer.ran, answer.seconds
        if answer.end == "OK":
            return Result(name=fault.name, file=fault.file, outcome="survived", tests=ran, seconds=seconds)
        test = answer.failed
        if answer.end != "time" and "::" in test and test not in confirmed.right:
            self._build()
            alone = self._tests([test], limit, traces)
            if alone.end != "OK":
                raise RuntimeError(f"{test} fails without a fault: {alone.end} {alone.why}")
            confirmed.right.add(test)
        return _caught(fault, answer, ran, seconds)

    def _tests(self, tests: list[str], limit: float, traces: Path) -> Answer:
        return self.tree.pytest(["-x", CPP_TESTS], tests, limit, traces=traces, environment=self.environment)
