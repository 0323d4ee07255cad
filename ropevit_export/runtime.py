"""Run a bundle: the same call whatever it holds.

    model = load("engines/rope_mixed_deit_base-384-fp32")
    logits = model.run(model.prepare(Image.open("cat.jpg")))

Imports ONNX Runtime, OpenVINO or TensorRT, not torch.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ropevit_export import tuned
from ropevit_export.backends.select import ENGINES, forms, runner
from ropevit_export.bundle import manifest, positions
from ropevit_export.errors import BackendError, BundleError, InputError, UsageError
from ropevit_export.images.files import opened
from ropevit_export.images.preprocess import crop, in_format, normalise
from ropevit_export.machine.files import require_regular
from ropevit_export.models.spec import Preprocess
from ropevit_export.rope import inputs
from ropevit_export.values import Form, Resolution

if TYPE_CHECKING:
    from PIL import Image

    from ropevit_export.backends.base import Runner
    from ropevit_export.values import Arrays

Array = npt.NDArray[Any]


def host_inputs(bundle: Path, artifact: manifest.ArtifactEntry) -> Callable[[Resolution], Arrays]:
    """What a host feeds an artifact beside the images, by their size; nothing where positions are in the graph.

    Filled once a size, in the inputs' formats, and chosen by rows and columns: 7x28 and 14x14 patches have as many
    tokens and other tables.
    """
    files = [each.path for each in artifact.files if each.kind == positions.KIND]
    if not files or artifact.dynamic is None:
        return lambda size: {}
    dynamic = artifact.dynamic
    largest = dynamic.max[0] // dynamic.patch, dynamic.max[1] // dynamic.patch
    parts = positions.read(bundle / files[0], largest)
    dtypes = {each.name: each.dtype for each in artifact.inputs[1:]}
    if inputs.names(parts) != dtypes.keys():
        raise BundleError(
            f"{bundle / files[0]} fills {', '.join(sorted(inputs.names(parts)))}, {artifact.path} takes "
            f"{', '.join(sorted(dtypes)) or 'images alone'}: one of them was changed. Export it again."
        )

    @functools.lru_cache(maxsize=2)  # of a large model at 1024 they take 400 MB
    def filled(size: Resolution) -> Arrays:
        made = inputs.fill(parts, size.height // dynamic.patch, size.width // dynamic.patch, dynamic.prefix)
        return {name: in_format(array, dtypes[name]) for name, array in made.items()}

    return filled


def load(bundle: str | Path, backend: str = "onnxruntime", *, form: Form | None = None, **options: Any) -> Model:
    """A bundle's graphs or engines, ready to run.

    load(bundle, "auto")                      as `ropevit-export tune` found fastest on this machine; `describe` says so
    load(bundle, "onnxruntime-cuda")          a provider of ONNX Runtime that can't be had is an error
    load(bundle, "openvino", device="GPU")    a device that computes in another precision is an error
    load(bundle, "openvino", compute="bf16")  what is float32 in the graph computed in bfloat16, which must be there
    load(bundle, "tensorrt-rtx")              its engines, on the GPU that they were built for

    ONNX Runtime and OpenVINO take `threads=N` and, for `Model.run_many`, `streams=N`. `form`: of the graph, if not the
    one that the backend is fastest with. Files are believed: `ropevit-export check` hashes them.
    """
    if backend != "auto":
        return Model(Path(bundle), backend, form, options)
    if form or options:
        raise UsageError('backend "auto" chooses form and options itself: name a backend to choose them.')
    setting, reason = tuned.choose(Path(bundle))
    return Model(Path(bundle), setting.backend, setting.form, setting.options, reason)


def artifacts(bundle: Path, listed: manifest.Manifest, backend: str) -> list[manifest.ArtifactEntry]:
    """What a backend runs of a bundle: engines of its own kind, or ONNX graphs. Raises BundleError for none."""
    kind = backend if backend in ENGINES else "onnx"
    found = [each for each in listed.artifacts if each.kind == kind]
    if not found:
        raise BundleError(f"{bundle} holds no {backend} engine: export it with --engine {backend}.")
    return found


def open_artifact(bundle: Path, artifact: manifest.ArtifactEntry, backend: str, **options: Any) -> Runner:
    """An artifact, loaded. Raises BackendError, and BundleError where one of its files is none."""
    for name in (artifact.path, *(each.path for each in artifact.files)):
        path = bundle / name
        try:
            require_regular(path.stat(), path)
        except OSError as error:
            raise BundleError(f"can't read {path}: {error.strerror or error}.") from error
    if artifact.options.get("strip_weights"):  # not every release of TensorRT can tell by the engine
        raise BackendError(f"{artifact.path} was built without its weights: a host has to put them back first.")
    if artifact.kind in ENGINES:
        options = {"targets": artifact.targets, "built_with": artifact.built_with, **options}
    return runner(backend, bundle / artifact.path, precision=artifact.precision, **options)


def _in_order(
    graphs: list[manifest.ArtifactEntry], backend: str, wanted: Form | None, device: str
) -> list[manifest.ArtifactEntry]:
    """Of graphs in several forms those of the wanted one; else those that the backend takes, its fastest first."""
    if wanted is not None:
        return [each for each in graphs if each.form == wanted]

    def place(graph: manifest.ArtifactEntry) -> int:
        taken = forms(backend, graph.precision, device)
        return taken.index(graph.form) if graph.form in taken else len(taken)

    return sorted(graphs, key=place)


def _picture(image: object) -> Image.Image:
    from PIL import Image

    if isinstance(image, (str, Path)):
        return opened(Path(image))
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(np.ascontiguousarray(image))
    what = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise InputError(
        f"prepare was given a {what}: needs a PIL image, uint8 pixels (H, W, 3) in RGB, or a path. A gray picture is "
        'one as Image.fromarray(pixels).convert("RGB").'
    )


class Model:
    """The graphs of a bundle, or its engines. Each is loaded at its first image."""

    def __init__(
        self, bundle: Path, backend: str, form: Form | None, options: dict[str, Any], reason: str = ""
    ) -> None:
        self.manifest = manifest.read(bundle)
        self.preprocess = Preprocess(**self.manifest.preprocess.model_dump())
        graphs = artifacts(bundle, self.manifest, backend)
        self._graphs = _in_order(graphs, backend, form, options.get("device", "CPU"))
        if not self._graphs:
            raise BundleError(f"{bundle} holds no graph in the form {form}.")
        self._bundle, self._backend, self._options, self._reason = bundle, backend, options, reason
        self._streams: int = options.get("streams", 1)
        self._opened: dict[str, Runner] = {}
        self._opening = threading.Lock()
        self._host = {graph.path: host_inputs(bundle, graph) for graph in self._graphs}

    @property
    def sizes(self) -> tuple[Resolution, ...]:
        """The sizes that the bundle was made for, in the order in which they were named."""
        pairs = dict.fromkeys(pair for graph in self._graphs for pair in graph.resolutions)
        return tuple(Resolution(height=height, width=width) for height, width in pairs)

    def prepare(self, image: Image.Image | Array | str | Path, size: Resolution | None = None) -> Array:
        """One image, resized, cropped and normalised as the authors do, in the graph's format: a batch of one.

        image: PIL's, uint8 pixels (H, W, 3) in RGB, or a file's path. Default size: the first of `sizes`. Raises
        InputError for anything else.
        """
        pixels = crop(_picture(image), self.preprocess, size or self.sizes[0])[None]
        if self.preprocess.dtype == "uint8":
            return pixels
        return in_format(normalise(pixels, self.preprocess), self.preprocess.dtype)

    def describe(self, size: Resolution) -> str:
        """The artifact that serves a size, and what it runs on. Loads it."""
        graph = self.artifact(size)
        reason = f", {self._reason}" if self._reason else ""
        return f"{self.runner(graph).describe}, {graph.path}{reason}"

    def run(self, images: Array) -> Array:
        """The answer to a batch, of a bundle with one output; see `run_all`."""
        answers = self.run_all(images)
        if len(answers) > 1:
            raise InputError(f"the bundle gives {', '.join(answers)}: call run_all, which returns them by name.")
        return next(iter(answers.values()))

    def run_all(self, images: Array) -> dict[str, Array]:
        """Answers by output to a batch (B, 3, H, W) in the graph's format, or (B, H, W, 3) uint8 where it takes raw
        pixels.

        The graph's format is float32 unless the bundle was made with another `--io-precision`; answers have it too.
        Raises InputError for a format, layout, size or batch that the bundle has no graph for; nothing is converted.
        """
        size = self._size(images)
        graph = self.artifact(size)
        batch = graph.batch
        if not batch.min <= len(images) <= batch.max:
            needed = f"{batch.min}" if batch.min == batch.max else f"{batch.min} to {batch.max}"
            raise InputError(f"a batch of {len(images)} was given, {graph.path} takes {needed}.")
        feeds = {graph.inputs[0].name: images, **self._host[graph.path](size)}
        answers = self.runner(graph).run(feeds)
        return {output.name: answers[output.name] for output in graph.outputs}

    def run_many(self, batches: Iterable[Array]) -> Iterator[dict[str, Array]]:
        """Answers to batches as `run_all` gives them, in their order: as many side by side as `load` was given
        `streams`, and no more than twice as many taken from `batches` ahead of what is asked for.

        An error is raised in its batch's place; what comes behind it is not computed.
        """
        waiting: deque[Future[dict[str, Array]]] = deque()
        with ThreadPoolExecutor(self._streams) as pool:
            try:
                for images in batches:
                    waiting.append(pool.submit(self.run_all, images))
                    if len(waiting) >= 2 * self._streams:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for each in waiting:
                    each.cancel()

    def _size(self, images: Array) -> Resolution:
        nhwc = self.preprocess.layout == "NHWC"
        channels = -1 if nhwc else 1
        if images.ndim != 4 or images.shape[channels] != 3 or images.dtype != self.preprocess.dtype:
            layout = "(B, H, W, 3)" if nhwc else "(B, 3, H, W)"
            raise InputError(
                f"{images.dtype} images of shape {images.shape} were given, needed {self.preprocess.dtype} {layout}."
            )
        height, width = images.shape[1:3] if nhwc else images.shape[2:4]
        return Resolution(height=int(height), width=int(width))

    def runner(self, graph: manifest.ArtifactEntry) -> Runner:
        """Loaded once, whoever asks first."""
        with self._opening:
            if graph.path not in self._opened:
                self._opened[graph.path] = open_artifact(self._bundle, graph, self._backend, **self._options)
            return self._opened[graph.path]

    def artifact(self, size: Resolution) -> manifest.ArtifactEntry:
        """What serves a size. Raises InputError where nothing does."""
        for graph in self._graphs:
            if graph.takes(size.height, size.width):
                return graph
        raise InputError(f"no graph for {size.height}x{size.width}: the bundle serves {self._served()}.")

    def _served(self) -> str:
        dynamic = next((graph.dynamic for graph in self._graphs if graph.kind == "onnx" and graph.dynamic), None)
        if dynamic is not None:
            return f"multiples of {dynamic.multiple} up to {dynamic.max[0]}x{dynamic.max[1]}"
        return ", ".join(f"{size.height}x{size.width}" for size in self.sizes)
