"""Bundles on Ray Serve: requests are put together into batches, answers are those of `ropevit_export.runtime`.

    from ray import serve
    from ropevit_export.serve_ray import app

    serve.run(app({"deit": "engines/rope_mixed_deit_base-384-fp32"}))

    curl --data-binary @cat.jpg http://localhost:8000/deit

or, from a configuration file, `import_path: ropevit_export.serve_ray:build` with `args: {bundles: {deit: engines/…}}`;
or, on the command line, `ropevit-export serve deit=engines/…`. Needs the extra `ray`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ropevit_export.errors import BackendError, InputError, UsageError, first_line
from ropevit_export.machine.process import handlers_kept
from ropevit_export.runtime import load

try:
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse
except ImportError as error:
    raise BackendError(f"Ray Serve can't be imported ({error}): pip install 'ropevit-export[ray]'") from error

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# What a request waits for others to make a batch, in seconds.
WAIT = 0.005
TOP = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """backend: what runs the bundles. wait: seconds that a request waits for others. batch: the most that are put
    together; by default what the bundle takes, up to 32.
    """

    backend: str = "onnxruntime"
    wait: float = WAIT
    batch: int = 32


class Bundle:
    """One bundle, loaded once a replica, at its first size."""

    def __init__(self, path: str, options: Options) -> None:
        self._model = load(path, options.backend)
        self._size = self._model.sizes[0]
        limits = self._model.artifact(self._size).batch
        self._smallest, largest = limits.min, min(limits.max, options.batch)
        self._answered.set_max_batch_size(max(largest, 1))
        self._answered.set_batch_wait_timeout_s(options.wait)
        self._pictures = self._batches = 0
        self.check_health()  # the first run is the slowest: before there are requests

    def check_health(self) -> None:
        """Ray calls it, and replaces a replica that raises."""
        self._run([self._model.prepare(Image.new("RGB", (8, 8)), self._size)[0]])

    async def answer(self, encoded: bytes) -> dict[str, Any]:
        """Of a picture's file: outputs by name, without the batch. Raises InputError for what is no picture."""
        image = await asyncio.to_thread(self._prepare, encoded)
        answered: dict[str, Any] = await self._answered(image)
        return answered

    def facts(self) -> dict[str, Any]:
        listed = self._model.manifest
        outputs = [each.name for each in listed.artifacts[0].outputs]
        return {"model": listed.model, "sizes": [str(each) for each in self._model.sizes], "outputs": outputs,
                "weights": listed.weights.sha256, "runs": self._model.describe(self._size),
                "answered": {"pictures": self._pictures, "batches": self._batches}}  # fmt: skip

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]  # see __init__
    async def _answered(self, images: list[Array]) -> list[dict[str, Array]]:
        answers = await asyncio.to_thread(self._run, images)
        self._pictures, self._batches = self._pictures + len(images), self._batches + 1
        return [{name: array[index] for name, array in answers.items()} for index in range(len(images))]

    def _prepare(self, encoded: bytes) -> Array:
        try:
            with Image.open(io.BytesIO(encoded)) as picture:
                prepared: Array = self._model.prepare(picture, self._size)[0]
                return prepared
        except UnidentifiedImageError as error:  # its text is an address in memory
            raise InputError("not a picture, or of a format that Pillow can't read") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"not a picture: {first_line(error)}") from error

    def _run(self, images: Sequence[Array]) -> Arrays:
        """A graph's smallest batch may be more than there are: it is filled up and cut again."""
        count = max(len(images), self._smallest)
        full = np.stack(images)
        answers = self._model.run_all(np.resize(full, (count, *full.shape[1:])))
        return {name: array[: len(images)] for name, array in answers.items()}


class Service:
    """HTTP: GET / for what is served, GET /NAME for one bundle, POST a picture's file to /NAME for its answer."""

    def __init__(self, **bundles: Any) -> None:
        self._bundles = bundles

    async def __call__(self, request: Request) -> JSONResponse:
        name = request.url.path.strip("/")
        if not name:
            return JSONResponse({"bundles": sorted(self._bundles)})
        if name not in self._bundles:
            served = ", ".join(sorted(self._bundles))
            return JSONResponse({"error": f"{name} is not served: there are {served}."}, status_code=404)
        bundle = self._bundles[name]
        if request.method == "GET":
            return JSONResponse(await bundle.facts.remote())
        try:
            found = await bundle.answer.remote(await request.body())
        except Exception as error:
            # Ray wraps what a replica raises.
            cause = getattr(error, "cause", error)
            if isinstance(cause, InputError):
                return JSONResponse({"error": str(cause)}, status_code=400)
            raise
        return JSONResponse({output: _plain(output, array) for output, array in found.items()})


def _plain(output: str, array: Array) -> Any:
    """As JSON: of logits the most probable classes too."""
    numbers = array.astype(np.float64)
    if output != "logits":
        return numbers.tolist()
    shares = np.exp(numbers - numbers.max())
    shares /= shares.sum()
    top = np.argsort(-numbers, kind="stable")[:TOP]
    return {"values": numbers.tolist(), "classes": top.tolist(), "probabilities": shares[top].tolist()}


def app(bundles: Mapping[str, str], *, replicas: int = 1, cpus: float = 1, gpus: float = 0, **options: Any) -> Any:
    """The application: a deployment a bundle, by the name that it is asked for by, behind one service.

    replicas: of each bundle, every one with so many cpus and gpus. options: those of `Options`.
    """
    made = {
        name: serve.deployment(Bundle).options(
            name=name, num_replicas=replicas, ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
            max_ongoing_requests=256,
        ).bind(str(path), Options(**options))
        for name, path in bundles.items()
    }  # fmt: skip
    return serve.deployment(Service).options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1024).bind(**made)


def build(args: dict[str, Any]) -> Any:
    """`app` for a Serve configuration file: its `args` are that function's."""
    return app(**args)


@contextlib.contextmanager
def running(
    bundles: Mapping[str, Path], options: Options, *, host: str, port: int, replicas: int = 1, gpus: float = 0
) -> Iterator[None]:
    """The application on this machine alone, whose cores its replicas share. In the block every bundle answers; behind
    it all processes have ended.

    Raises BundleError of a bundle that can't be read, UsageError where another program has the port, BackendError of
    what the backend refuses.
    """
    for folder in bundles.values():
        load(folder, options.backend)  # what it raises here would be a replica's end there, without the reason
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port))
        except OSError as error:
            raise UsageError(f"can't listen at {host}, port {port}: {error.strerror}; give another --port.") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with handlers_kept():  # Ray ends the process at SIGTERM, as if something had failed
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        # Ray gives a replica the cores that it asks for and waits where there are too few, without a word.
        cpus = min(1.0, ray.cluster_resources()["CPU"] / (len(bundles) * replicas))
        folders = {name: str(folder.resolve()) for name, folder in bundles.items()}
        made = app(folders, replicas=replicas, cpus=cpus, gpus=gpus, **dataclasses.asdict(options))
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(made)
        except Exception as error:
            raise BackendError(f"Ray Serve can't start: {first_line(error)}") from error
        yield
    finally:
        ray.shutdown()
