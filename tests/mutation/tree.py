"""A copy of the repository to plant faults in, and the process that runs its tests. The repository itself is not
written to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.mutation.server import Answer, Request

# Ignored by git, and what tests would download.
DOWNLOADED = ("cpp/headers",)


def listed(root: Path) -> list[str]:
    """Files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    return [name for name in out.split("\0") if name and (root / name).is_file()]


class Tree:
    """`folder`: a copy of `root`. `warm`: its process imports torch and others before the first run."""

    def __init__(self, root: Path, folder: Path, *, warm: bool = True) -> None:
        self.folder = folder
        self._warm = warm
        self._scratch = folder.with_name(f"{folder.name}-runs")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._copy(root)
        self._server: subprocess.Popen[str] | None = None

    def _copy(self, root: Path) -> None:
        """build/ stays: what is compiled there is compiled again where its source is newer."""
        kept, wanted = self.folder / "build", set(listed(root))
        if self.folder.exists():
            for name in listed(self.folder):
                if name not in wanted:
                    (self.folder / name).unlink()
        for name in wanted:
            source, target = root / name, self.folder / name
            if not target.exists() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        kept.mkdir(exist_ok=True)
        for name in DOWNLOADED:
            if (root / name).is_dir() and not (self.folder / name).exists():
                shutil.copytree(root / name, self.folder / name)
        if not (self.folder / ".git").exists():  # tests ask git which files there are
            self._git("init", "-q")
        self._git("add", "-A")
        self._git("-c", "user.name=mutate", "-c", "user.email=mutate@localhost", "commit", "-q", "--allow-empty", "-m",
                  "copy")  # fmt: skip

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.folder, check=True)

    @property
    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **own}

    @contextmanager
    def planted(self, name: str, source: str) -> Iterator[None]:
        """A file with other contents."""
        path = self.folder / name
        before = path.read_bytes()
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        try:
            path.write_text(source, encoding="utf-8")
            yield
        finally:
            path.write_bytes(before)

    def pytest(self, arguments: list[str], select: list[str] | None, seconds: float, *, traces: Path | None = None,
               environment: dict[str, str] | None = None, **more: Any) -> Answer:  # fmt: skip
        """See `Request`. `traces`: kept ones of modules that the fault planted does not touch."""
        folder = self._scratch / "this"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if traces:
            traces.mkdir(parents=True, exist_ok=True)
            (folder / "traces").symlink_to(traces.resolve())
        # As a process of pytest-xdist: one thread, and traces beside the folder of temporary files.
        told = {"PYTEST_XDIST_WORKER": "gw0", **(environment or {})}
        request = Request(arguments=arguments, select=select, folder=str(folder.resolve()), seconds=seconds,
                          environment=told, **more)  # fmt: skip
        server = self._started()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(dataclasses.asdict(request)), file=server.stdin, flush=True)
        reply = server.stdout.readline()
        if not reply:
            raise RuntimeError(f"the server of {self.folder} ended: see {self._scratch / 'server.log'}")
        return Answer(**json.loads(reply))

    def compile(self) -> None:
        """Python's bytecode of all files, so that runs need not make it."""
        answer = self.pytest(["--collect-only", "-m", ""], None, 1800.0, compiles=True)
        if answer.end != "OK":
            raise RuntimeError(f"tests can't be collected: {answer.end}, {answer.failed} {answer.why}")

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            with (self._scratch / "server.log").open("w") as log:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "tests.mutation.server", "warm" if self._warm else "cold"],
                    cwd=self.folder, env=self.environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
            assert self._server.stdout is not None
            if self._server.stdout.readline() != "ready\n":
                raise RuntimeError(f"the server of {self.folder} did not start: see {self._scratch / 'server.log'}")
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
            self._server = None
        shutil.rmtree(self._scratch, ignore_errors=True)
