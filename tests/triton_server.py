"""A Triton server as nvidia-pytriton brings it: the core, HTTP, gRPC, metrics and the Python backend."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def package() -> Path | None:
    found = importlib.util.find_spec("pytriton")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    http: str
    grpc: str
    metrics: str

    def counts(self, model: str) -> dict[str, float]:
        """Its `nv_inference_…` metrics: `count`, inferences; `exec_count`, runs of batches; …"""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        mine = [line for line in lines if line.startswith("nv_inference_") and f'model="{model}"' in line]
        return {line.split("{")[0].removeprefix("nv_inference_"): float(line.rsplit(" ", 1)[1]) for line in mine}


@contextlib.contextmanager
def serving(models: Path, folder: Path, *, seconds: float = 120) -> Iterator[Server]:
    """A server of a repository on ports of its own, once it is ready. Its log is `folder`/log."""
    root = package()
    assert root
    backends = folder / "backends"
    shutil.copytree(root / "tritonserver" / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python" / stub.name)
    ports = free_ports(3)
    # The server's Python is the first on PATH, with what is installed there; it heeds no PYTHONPATH.
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root.parent / "nvidia_pytriton.libs"), "PATH": search}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                root / "tritonserver" / "bin" / "tritonserver", f"--model-repository={models}",
                f"--backend-directory={backends}", "--allow-metrics=true", "--exit-on-error=true",
                "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
                *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
            ],
            stdout=log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        try:
            server = Server(
                **dict(zip(("http", "grpc", "metrics"), (f"127.0.0.1:{each}" for each in ports), strict=True))
            )
            until = time.monotonic() + seconds
            while not _ready(server):
                ended = process.poll() is not None or time.monotonic() > until
                assert not ended, (folder / "log").read_text()[-4000:]
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert process.returncode == 0, (folder / "log").read_text()[-4000:]


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
