"""Runs tests again and again without importing torch again: a process that has imported what is not ours forks for
each run, so that a run costs the time of its tests. Started by `scripts/mutate` within a copy of the repository.

A request is a line of JSON on stdin, `Request`; its answer a line of JSON on stdout, `Answer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Hooks of pytest take items and reports of classes whose types change with its version.
Item = Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """`select`: the tests to run, in this order, of all that `arguments` collect; None: all of these.

    folder: temporary files of the tests, emptied before, beside `traces` (tests/traces.py), which is kept.
    seconds: more than this, and the run is ended. record: where to write which lines each test executes, and of which
    files (recorder.py). compiles: bytecode is kept, which must not be with a fault planted: another one planted within
    the second would run as the first.
    """

    arguments: list[str]
    select: list[str] | None
    folder: str
    seconds: float
    record: list[str] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    compiles: bool = False


@dataclass(kw_only=True)
class Answer:
    """`failed`: the first test that failed or could not be collected, "" if none. `ran`: how many were run."""

    end: str = "nothing"
    ran: int = 0
    failed: str = ""
    why: str = ""
    seconds: float = 0.0
    missing: int = 0


class Chosen:
    """A pytest plugin: only the tests asked for, in their order, and what became of them."""

    def __init__(self, select: list[str] | None, answer: Answer) -> None:
        self.select = select
        self.answer = answer

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Item]) -> None:
        if self.select is not None:
            found = {item.nodeid: item for item in items}
            items[:] = [found[name] for name in self.select if name in found]
            self.answer.missing = len(self.select) - len(items)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._failed(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.answer.ran += report.when == "setup"
        if report.failed:
            self._failed(report)

    def _failed(self, report: Any) -> None:
        if not self.answer.failed:
            self.answer.failed = report.nodeid
            self.answer.why = _last_error(str(report.longrepr))


def _last_error(text: str) -> str:
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
    return (errors[0] if errors else text.strip().rpartition("\n")[2])[:300]


def warm_up() -> None:
    """Import what the tests import that is not of this repository, and let torch read its tables of operators."""
    import huggingface_hub  # noqa: F401
    import hypothesis  # noqa: F401
    import onnx_ir.passes.common  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript.optimizer  # noqa: F401
    import onnxsim  # noqa: F401
    import PIL.Image  # noqa: F401
    import pydantic  # noqa: F401
    import rich.console  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    torch.set_num_threads(1)
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    torch.onnx.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), dynamo=True, verbose=False)


def serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    if "cold" not in sys.argv:
        warm_up()
    ours = [name for name in sys.modules if name.split(".")[0] == "ropevit_export"]
    assert not ours, f"{ours} would not be read again by a run"
    gc.collect()
    gc.freeze()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = Request(**json.loads(line))
        print(json.dumps(dataclasses.asdict(run(request))), file=replies, flush=True)


def run(request: Request) -> Answer:
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "answer.json"
    told.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if not child:
        _child(request, told)
    status = _wait(child, start + request.seconds)
    answer = Answer(**json.loads(told.read_text())) if told.exists() else Answer()
    answer.seconds = round(time.monotonic() - start, 2)
    if status is None:
        answer.end = "time"
    elif not told.exists():
        answer.end = f"died by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died"
    return answer


def _wait(child: int, until: float) -> int | None:
    """Its status, or None if it took too long and was ended with all that it had started."""
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return status
        time.sleep(0.02)
    _end_group(child)
    os.waitpid(child, 0)
    return None


def _end_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _child(request: Request, told: Path) -> None:
    """Never returns."""
    os.setsid()
    log = os.open(told.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= request.environment
    sys.dont_write_bytecode = not request.compiles
    answer = Answer()
    try:
        answer.end = _pytest(request, answer)
        partial = told.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(answer)))
        partial.rename(told)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _pytest(request: Request, answer: Answer) -> str:
    plugins: list[object] = [Chosen(request.select, answer)]
    if request.record:
        from tests.mutation.recorder import Recorder

        plugins.append(Recorder(Path(request.record[0]), request.record[1:]))
    own = [
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "--hypothesis-seed=0",
        f"--basetemp={request.folder}/run",
    ]
    return pytest.ExitCode(pytest.main([*own, *request.arguments], plugins=plugins)).name


if __name__ == "__main__":
    serve()
