"""Whether tests notice a fault: it is planted in a copy, and they run."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.mutation.fault import Fault
from tests.mutation.selection import Selection
from tests.mutation.server import Answer
from tests.mutation.tree import Tree

# Of a fault's tests the quickest that take so long together come first, then those up to the second; most faults are
# noticed by one of these. Of files that do not import its module those up to the last have run before it counts as
# survived: of many faults every export is among their tests.
FIRST_SECONDS, SECOND_SECONDS, LAST_SECONDS = 20.0, 150.0, 600.0
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

    def after(self, before: Result) -> Result:
        return replace(self, tests=before.tests + self.tests, seconds=round(before.seconds + self.seconds, 1))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Confirmed:
    """A test that fails without a fault too proves nothing: each that noticed one runs on the whole tree, once, alone;
    or, where it needs what those before it did, behind them.
    """

    def __init__(self) -> None:
        self.right: set[str] = set()
        self.wrong: set[str] = set()
        self._lock = threading.Lock()

    def holds(self, test: str, chosen: list[str], run: Callable[[list[str]], Answer]) -> bool:
        """`chosen`: what ran, in order."""
        if test not in self.right and test not in self.wrong:
            sequences = ([test], chosen[: chosen.index(test) + 1])
            right = any(run(sequence).end == "OK" for sequence in sequences)
            with self._lock:
                (self.right if right else self.wrong).add(test)
            if not right:
                print(f"{test} fails without a fault", file=sys.stderr)
        return test in self.right


def stages(selection: Selection, root: Path, fault: Fault) -> tuple[list[list[str]], list[str]]:
    """The first of the tests that execute a fault, in two steps, and what else must run until it counts as survived."""
    executing, related = selection.of(fault), selection.related(root, fault)
    ends = [0, *selection.within(executing, (FIRST_SECONDS, SECOND_SECONDS, LAST_SECONDS))]
    first, second, last = (executing[start:end] for start, end in itertools.pairwise(ends))
    done = {*first, *second}
    return [first, second], selection.ordered({*last, *related} - done)


def python(tree: Tree, root: Path, fault: Fault, selection: Selection, confirmed: Confirmed, traces: Path, *,
           quick: bool, last: bool) -> Result:  # fmt: skip
    """`quick`: the first tests. `last`: then all others; slow ones where no default test executes the fault."""
    first, others = stages(selection, root, fault)
    steps = [*(first if quick else ()), *([others] if last else ())]
    kept = traces if fault.file.startswith(TRACED_ALIKE) else None
    source = (root / fault.file).read_text(encoding="utf-8")
    ran, seconds = 0, 0.0

    def noticed(arguments: list[str], chosen: list[str] | None, limit: float) -> Answer:
        nonlocal ran, seconds
        with tree.planted(fault.file, fault.planted(source)):
            answer = tree.pytest(["-x", *arguments], chosen, limit, traces=kept)
        ran, seconds = ran + answer.ran, seconds + answer.seconds
        return answer

    def whole(sequence: list[str], limit: float = SLOW_SECONDS) -> Answer:
        return tree.pytest(["-x", *_files(sequence)], sequence, limit, traces=traces)

    for step in steps:
        chosen = [test for test in step if test not in confirmed.wrong]
        while chosen:
            limit = START_SECONDS + TIMES * selection.seconds(chosen)
            answer = _ended(partial(noticed, _files(chosen), chosen), partial(whole, chosen), limit)
            if answer.end == "OK":
                break
            test = answer.failed if "::" in answer.failed else ""
            if answer.end == "time" or not test or confirmed.holds(test, chosen, whole):
                return _caught(fault, answer, ran, seconds)
            chosen = chosen[chosen.index(test) + 1 :]  # those before it have passed
    files = _files(selection.related(root, fault))
    if last and files and not first[0]:
        answer = noticed(["-m", "slow and not gpu", *files], None, SLOW_SECONDS)
        if answer.end not in ("OK", "NO_TESTS_COLLECTED"):
            return _caught(fault, answer, ran, seconds)
    return Result(
        name=fault.name, file=fault.file, outcome="survived" if last else "open", tests=ran, seconds=round(seconds, 1),
        why="" if first[0] else "no default test executes it",
    )  # fmt: skip


def _ended(run: Callable[[float], Answer], without: Callable[[float], Answer], limit: float) -> Answer:
    """What `run` gives, which has longer where the same tests `without` the fault take too long too: a busy machine."""
    answer = run(limit)
    while answer.end == "time" and without(limit).end == "time":
        limit *= 2
        answer = run(limit)
    return answer


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
            made = self._cases.with_suffix(".partial")
            shutil.rmtree(made, ignore_errors=True)
            self._python(
                "import sys; from pathlib import Path; from tests import cpp_cases\n"
                "for name, case in cpp_cases.CASES.items():\n"
                "    case.default and cpp_cases.make(name, Path(sys.argv[1]), 1)",
                str(made),
            )
            made.rename(self._cases)
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

    def trial(
        self, fault: Fault, selection: Selection, confirmed: Confirmed, traces: Path, *, times: float = TIMES
    ) -> Result:
        """`times` more than the tests took is how long they may take."""
        tests = [test for test in selection.ordered(selection.tests) if test.startswith(f"{CPP_TESTS}::")]
        limit = START_SECONDS + times * selection.seconds(tests)
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
        self._build()
        if answer.end == "time" and self._tests(tests, limit, traces).end == "time":  # a busy machine
            return self.trial(fault, selection, confirmed, traces, times=2 * times)
        named = answer.end != "time" and "::" in answer.failed
        if named and not confirmed.holds(answer.failed, tests, lambda some: self._tests(some, limit, traces)):
            raise RuntimeError(f"{answer.failed} fails without a fault")
        return _caught(fault, answer, ran, seconds)

    def _tests(self, tests: list[str], limit: float, traces: Path) -> Answer:
        return self.tree.pytest(["-x", CPP_TESTS], tests, limit, traces=traces, environment=self.environment)
