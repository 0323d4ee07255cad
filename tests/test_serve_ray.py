"""Bundles on a local Ray Serve: many clients, PyTorch's answers, several bundles, errors of one request alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropevit_export import cli
from ropevit_export.bundle import golden, manifest
from ropevit_export.models.zoo import DIGITS
from ropevit_export.parity.samples import PHOTOS
from tests.triton_server import free_ports

pytestmark = pytest.mark.slow
CLIENTS, REQUESTS = 16, 2000


def fetch(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
        return json.loads(answer.read())


def test_two_thousand_requests_of_sixteen_clients(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ropevit-export[ray]'")
    import ray
    from ray import serve

    from ropevit_export import serve_ray

    batched = tmp_path / "batched"
    command = ["--model", f"shallow_{DIGITS.name}", "--res", "32", "--batch", "1:4:8", "--weights", "random", "-q"]
    assert cli.run([*command, "--engine", "none", "--out", str(batched)]) == 0
    theirs = golden.read(batched / "golden-32.safetensors", ["logits"])[1]["logits"][1:]
    limit = manifest.read(batched).parity[0].tolerance["relative"] * float(np.sqrt((theirs**2).mean()))
    port = free_ports(1)[0]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve_ray.app({"digits": str(batched), "deit": str(bundle)}, cpus=0.5))
        url = f"http://127.0.0.1:{port}"
        assert fetch(url)["bundles"] == ["deit", "digits"]
        assert fetch(f"{url}/deit")["weights"] == manifest.read(bundle).weights.sha256
        errors: list[float] = []
        failures: list[BaseException] = []

        def ask(number: int) -> None:
            try:
                for request in range(REQUESTS // CLIENTS):
                    index = (number + request) % len(PHOTOS)
                    found = fetch(f"{url}/digits", PHOTOS[index].read_bytes())["logits"]
                    errors.append(float(np.abs(np.array(found["values"]) - theirs[index]).max()))
                    assert found["classes"][0] == theirs[index].argmax()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(errors) == REQUESTS
        assert max(errors) <= limit
        answered = fetch(f"{url}/digits")["answered"]
        assert answered["pictures"] == REQUESTS
        assert answered["batches"] < REQUESTS / 1.1
        print(f"{REQUESTS} requests, worst error {max(errors):.1e} of {limit:.1e}, "
              f"{REQUESTS / answered['batches']:.2f} pictures a batch")  # fmt: skip
        for path, body, code, sentence in (("digits", b"no", 400, "not a picture"), ("x", b"", 404, "is not served")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                fetch(f"{url}/{path}", body)
            assert refused.value.code == code
            assert sentence in json.loads(refused.value.read())["error"]
        expected = golden.read(bundle / "golden-32.safetensors", ["logits"])[1]["logits"][1]
        other = fetch(f"{url}/deit", PHOTOS[0].read_bytes())["logits"]
        np.testing.assert_allclose(other["values"], expected, atol=1e-3)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def served(bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of `serve`, in a process of its own."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ropevit-export[ray]'")
    (port,) = free_ports(1)
    program = [sys.executable, "-c", "from ropevit_export.start import main; main()"]
    command = [*program, "serve", f"deit={bundle}", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"http://127.0.0.1:{port}/deit: {bundle}\n"
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def test_serve_answers_until_it_is_told_to_end(
    served: tuple[str, subprocess.Popen[str]], bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, process = served
    theirs = golden.read(bundle / "golden-32.safetensors", ["logits"])[1]["logits"][1:]
    for picture, logits in zip(PHOTOS, theirs, strict=True):
        found = fetch(f"{url}/deit", picture.read_bytes())["logits"]
        assert np.abs(np.array(found["values"]) - logits).max() <= 1e-4 * float(np.sqrt((theirs**2).mean()))
    port = url.rpartition(":")[2]
    assert cli.run(["serve", str(bundle), "--port", port]) == 2
    assert f"can't listen at 127.0.0.1, port {port}" in capfd.readouterr().err
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    time.sleep(1)
    with pytest.raises(OSError, match="refused"):
        fetch(url)


def test_serve_says_what_a_bundle_or_backend_lacks(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ropevit-export[ray]'")
    assert cli.run(["serve", str(tmp_path)]) == 1
    assert "is not a bundle" in capfd.readouterr().err
    assert cli.run(["serve", str(bundle), "--backend", "tensorrt-rtx"]) == 1
    assert "tensorrt-rtx" in capfd.readouterr().err
