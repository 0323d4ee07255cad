"""Which lines each test executes, and how long it takes.

Fixtures of a session, cached functions and kept traces are worked out by the first test that asks for them, but are as
much what the others test. So such a thing has a name and lines of its own, and every test that uses it has these too.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coverage
import pytest

IMPORT = "import"


class Recorder:
    """A pytest plugin. `files` are those whose lines matter."""

    def __init__(self, out: Path, files: list[str]) -> None:
        self._out = out
        self._coverage = coverage.Coverage(data_file=None, include=files, config_file=False, messages=False)
        self._within = [IMPORT]
        self._uses: defaultdict[str, set[str]] = defaultdict(set)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._failed: list[str] = []
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(functools, "lru_cache", self._lru_cache)
        self._patch.setattr(functools, "cache", lambda function: self._lru_cache(maxsize=None)(function))
        self._coverage.start()
        self._coverage.switch_context(IMPORT)

    @contextmanager
    def _under(self, name: str) -> Iterator[None]:
        """Lines and time go to `name`, which is used by what runs now."""
        self._uses[self._within[-1]].add(name)
        before, start = self._within[-1], time.perf_counter()
        self._within.append(name)
        self._coverage.switch_context(name)
        try:
            yield
        finally:
            self._within.pop()
            self._coverage.switch_context(before)
            took = time.perf_counter() - start
            self._seconds[name] += took
            self._seconds[before] -= took

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        with self._under(item.nodeid):
            self._uses[item.nodeid] |= {f"fixture {name}" for name in item.fixturenames}
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        if fixturedef.scope == "function":
            return (yield)
        with self._under(f"fixture {fixturedef.argname}"):
            return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_sessionstart(self) -> None:
        """Traces: see tests/traces.py. What `fingerprint` gives is the name of what `TRACE` makes next."""
        traces: Any = sys.modules.get("tests.traces")
        if traces is None:
            return
        fingerprint, trace, names = traces.fingerprint, traces.TRACE, [""]

        def named(*values: object) -> str:
            names[0] = f"trace {fingerprint(*values)}"
            self._uses[self._within[-1]].add(names[0])
            return names[0].removeprefix("trace ")

        def made(*values: Any) -> Any:
            with self._under(names[0]):
                return trace(*values)

        self._patch.setattr(traces, "fingerprint", named)
        self._patch.setattr(traces, "TRACE", made)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._patch.undo()
        data = self._coverage.get_data()
        here = Path.cwd()
        lines = {
            Path(file).relative_to(here).as_posix(): data.contexts_by_lineno(file) for file in data.measured_files()
        }
        self._out.write_text(json.dumps({
            "seconds": {name: round(seconds, 3) for name, seconds in self._seconds.items()},
            "uses": {name: sorted(used) for name, used in self._uses.items()},
            "lines": lines,
            "failed": self._failed,
        }))  # fmt: skip

    def _lru_cache(self, maxsize: Any = 128, typed: bool = False) -> Any:
        if callable(maxsize):
            return self._lru_cache()(maxsize)
        return lambda function: self._cached(function, REAL(maxsize, typed))

    def _cached(self, function: Callable[..., Any], cache: Callable[[Any], Any]) -> Any:
        if getattr(function, "__module__", "").split(".")[0] not in ("tests", "ropevit_export"):
            return cache(function)

        def named(*values: Any, **more: Any) -> str:
            return f"{function.__module__}.{function.__qualname__} {values} {more}"

        @functools.wraps(function)
        def recorded(*values: Any, **more: Any) -> Any:
            with self._under(named(*values, **more)):
                return function(*values, **more)

        kept = cache(recorded)

        @functools.wraps(kept)
        def call(*values: Any, **more: Any) -> Any:
            self._uses[self._within[-1]].add(named(*values, **more))
            return kept(*values, **more)

        call.cache_clear, call.cache_info = kept.cache_clear, kept.cache_info  # type: ignore[attr-defined]
        return call


REAL = functools.lru_cache
