"""`eval`: how often a bundle's graphs are right, beside PyTorch with the same weights, image by image.

Images go through the bundle's own preprocessing. The difference to PyTorch is paired: both saw the same images, so its
standard error is that of the images on which they disagree, far below the error of either accuracy.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from ropevit_export.backends.select import checkers
from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError, InputError
from ropevit_export.formats import EIGHT_BITS
from ropevit_export.images.files import BUILT_IN, DIGITS_FOLDER, image_files, opened, readable
from ropevit_export.images.preprocess import crop, normalise
from ropevit_export.models.spec import Preprocess
from ropevit_export.models.zoo import DIGITS
from ropevit_export.parity import samples
from ropevit_export.runtime import artifacts, host_inputs, open_artifact
from ropevit_export.values import Resolution
from ropevit_export.verbs.original import reference_of

if TYPE_CHECKING:
    from ropevit_export.backends.base import Runner
    from ropevit_export.values import Array, Arrays, FloatArray

IMAGENET_CLASSES = 1000
LOGITS = "logits"
_BATCH = 32

Answer = Callable[[npt.NDArray[np.uint8]], "Array"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images, opened by their number, and their classes. `files`: theirs, if they are files. `imagenet`: ImageNet-1k's
    1000 folders, nXXXXXXXX.
    """

    labels: npt.NDArray[np.int64]
    open: Callable[[int], Image.Image]
    imagenet: bool
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """One contender at one size. Percent; `difference` to PyTorch in points, with its standard error.

    `top5`: None where there are no more than five classes. `published`: the authors' top-1, where the data is ImageNet.
    `unreadable`: pictures that were left out because they can't be read.
    """

    contender: str
    runtime: str
    resolution: tuple[int, int]
    images: int
    top1: float
    top5: float | None
    difference: float
    standard_error: float
    published: float | None
    unreadable: int = 0


def labelled(data: str, classes: int) -> Labelled:
    """The built-in digits, or a folder with one folder a class (ImageNet's layout), in the order of their names."""
    if data == BUILT_IN:
        return _digits(classes)
    root = Path(data).expanduser()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if len(folders) != classes:
        raise InputError(
            f"{root} has {len(folders)} folders, the bundle's model has {classes} classes: needs one folder a class."
        )
    files = [(path, index) for index, folder in enumerate(folders) for path in image_files(folder)]
    if not files:
        raise InputError(f"{root} holds no images in its {classes} folders.")

    named = all(folder.name[:1] == "n" and folder.name[1:].isdigit() for folder in folders)
    labels = np.array([label for _, label in files])
    return Labelled(
        labels=labels,
        open=lambda index: opened(files[index][0]),
        imagenet=named and classes == IMAGENET_CLASSES,
        files=tuple(path for path, _ in files),
    )


def _digits(classes: int) -> Labelled:
    if classes != DIGITS.classes:
        raise InputError(
            f"--data {BUILT_IN} has {DIGITS.classes} classes, the bundle's model {classes}: give a folder."
        )
    with np.load(DIGITS_FOLDER / "test.npz") as held_out:
        images, labels = held_out["images"], held_out["labels"].astype(np.int64)
    return Labelled(labels=labels, open=lambda index: Image.fromarray(images[index]), imagenet=False)


def published(model: str, resolution: Resolution) -> float | None:
    """The authors' ImageNet top-1 in percent, where they give one for the size (Heo et al., ECCV 2024)."""
    with DIGITS_FOLDER.with_name("accuracy.csv").open(encoding="utf-8") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        found = next((row.get(f"top1_{resolution}") for row in rows if row["model"] == model), None)
    return float(found) if found else None


def evaluate(
    bundle: Path,
    data: str,
    *,
    weights: str | None = None,
    backend: str | None = None,
    resolution: Resolution | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> list[Accuracy]:
    """Accuracy of PyTorch and of every graph of a bundle at each size it names, or at one.

    weights: where PyTorch has them from, if not from where the manifest says; must be the same. backend: what runs the
    graphs; by default what `check` uses, which computes in the graph's own precision. limit: only that many images,
    spread over all classes. skip_unreadable: leave pictures out that can't be read; without it they are an error,
    before anything is computed. Raises RopevitError.
    """
    listed = manifest.read(bundle)
    if LOGITS not in (entry.name for entry in listed.artifacts[0].outputs):
        raise InputError(f"{bundle} gives {listed.output}: eval needs a bundle made with --output logits.")
    everything = labelled(data, listed.classes)
    count = len(everything.labels)
    chosen = np.arange(count) if limit is None else np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))
    wanted = len(chosen)
    if everything.files:
        files = {everything.files[index]: index for index in chosen}
        chosen = np.array([files[path] for path in readable(list(files), f"--data {data}", skip=skip_unreadable)])
    sizes = _sizes(listed, resolution)
    out: list[Accuracy] = []
    for number, size in enumerate(sizes):
        told = functools.partial(_told, progress, number * len(chosen), len(sizes) * len(chosen))
        contenders = [("PyTorch", *_pytorch(listed, weights, size)), *_graphs(bundle, listed, size, backend)]
        answers = _run(everything, chosen, size, listed, [answer for _, _, answer in contenders], told)
        rows = _rows(listed, contenders, answers, everything, chosen, size)
        out += [replace(row, unreadable=wanted - len(chosen)) for row in rows]
    return out


def _told(progress: Callable[[int, int], None], before: int, count: int, done: int) -> None:
    progress(before + done, count)


def _sizes(listed: manifest.Manifest, wanted: Resolution | None) -> list[Resolution]:
    named = dict.fromkeys(pair for each in listed.artifacts if each.kind == "onnx" for pair in each.resolutions)
    if wanted is None:
        return [Resolution(height=height, width=width) for height, width in named]
    if not any(each.takes(wanted.height, wanted.width) for each in listed.artifacts):
        raise InputError(f"no graph for {wanted.height}x{wanted.width} in this bundle.")
    return [wanted]


def _pytorch(listed: manifest.Manifest, weights: str | None, size: Resolution) -> tuple[str, Answer]:
    """The unfolded model with the bundle's weights, float32."""
    original, preprocess = reference_of(listed, size, weights), Preprocess(**listed.preprocess.model_dump())
    return "PyTorch, float32", lambda pixels: original.run(normalise(pixels, preprocess))[LOGITS]


def _graphs(
    bundle: Path, listed: manifest.Manifest, size: Resolution, backend: str | None
) -> Iterator[tuple[str, str, Answer]]:
    preprocess = Preprocess(**listed.preprocess.model_dump())
    graphs = artifacts(bundle, listed, backend or "onnxruntime")
    # Other forms of a graph have the same numbers, but those of 8 bits.
    own = [each for each in graphs if each.form == "portable" or each.precision in EIGHT_BITS]
    serving = [each for each in own if each.takes(size.height, size.width)]
    if not serving:
        raise BundleError(f"{bundle} holds no {backend} engine for {size.height}x{size.width}.")
    for each in serving:
        host = host_inputs(bundle, each)(size)
        runners = [open_artifact(bundle, each, backend)] if backend else checkers(bundle / each.path, each.precision)
        for session in runners:
            yield each.path, session.describe, functools.partial(_answer, session, each, host, preprocess)


def _answer(
    session: Runner,
    artifact: manifest.ArtifactEntry,
    host: Arrays,
    preprocess: Preprocess,
    pixels: npt.NDArray[np.uint8],
) -> Array:
    """Logits for any number of images, in batches that the graph takes; the last is filled up and cut again."""
    images = samples.feed(pixels, normalise(pixels, preprocess), preprocess)
    step = max(artifact.batch.min, min(artifact.batch.max, _BATCH))
    answers = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        feeds = {artifact.inputs[0].name: np.resize(part, (step, *part.shape[1:])), **host}
        answers.append(session.run(feeds)[LOGITS][: len(part)])
    return np.concatenate(answers)


def _run(
    everything: Labelled,
    chosen: npt.NDArray[np.int64],
    size: Resolution,
    listed: manifest.Manifest,
    contenders: Sequence[Answer],
    progress: Callable[[int], None],
) -> list[FloatArray]:
    """(images, classes) of each contender. Every image is opened and prepared once."""
    preprocess = Preprocess(**listed.preprocess.model_dump())
    answers: list[list[Array]] = [[] for _ in contenders]
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        batch = np.stack([crop(everything.open(int(index)), preprocess, size) for index in part])
        for mine, contender in zip(answers, contenders, strict=True):
            mine.append(contender(batch))
        progress(start + len(part))
    return [np.concatenate(mine).astype(np.float32) for mine in answers]


def _rows(
    listed: manifest.Manifest,
    contenders: Sequence[tuple[str, str, Answer]],
    answers: Sequence[FloatArray],
    everything: Labelled,
    chosen: npt.NDArray[np.int64],
    size: Resolution,
) -> list[Accuracy]:
    labels = everything.labels[chosen]
    right = [(logits.argmax(1) == labels).astype(np.float64) for logits in answers]
    rows = []
    for (name, runtime, _), logits, mine in zip(contenders, answers, right, strict=True):
        five = np.argpartition(logits, -5, axis=1)[:, -5:] if logits.shape[1] > 5 else None
        gap = mine - right[0]
        rows.append(
            Accuracy(
                contender=name,
                runtime=runtime,
                resolution=(size.height, size.width),
                images=len(labels),
                top1=100 * float(mine.mean()),
                top5=None if five is None else 100 * float((five == labels[:, None]).any(1).mean()),
                difference=100 * float(gap.mean()),
                standard_error=100 * float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0,
                published=published(listed.model, size) if everything.imagenet else None,
            )
        )
    return rows
