"""Images that 8-bit ranges are measured on, through the bundle's own preprocessing. Never random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ropevit_export.errors import InputError
from ropevit_export.images.files import BUILT_IN, DIGITS_FOLDER, image_files, opened, readable, unreadable
from ropevit_export.images.preprocess import crop, normalise
from ropevit_export.machine import files
from ropevit_export.models.spec import Preprocess
from ropevit_export.values import IoSpec, Resolution

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# More change ranges little: minimum and maximum of a few dozen images are those of the job.
MOST = 64
_MOST_BYTES = files.GB  # of one picture's file


def pictures(calib: str, *, skip_unreadable: bool = False) -> list[Callable[[], Image.Image]]:
    """At most `MOST` images of a folder and the folders in it, spread evenly over their sorted names; or the packaged
    ones, digits that the packaged model was trained on. Each is looked at: raises InputError (`files.readable`).
    """
    if calib == BUILT_IN:
        with np.load(DIGITS_FOLDER / "calibration.npz") as file:
            return [lambda image=image: Image.fromarray(image) for image in file["images"]]  # type: ignore[misc]
    good = readable(_chosen(calib), f"--calib {calib}", skip=skip_unreadable)
    return [lambda path=path: opened(path) for path in good]  # type: ignore[misc]


def left_out(calib: str | None) -> list[str]:
    """The names of those that can't be read."""
    return [] if calib in (None, BUILT_IN) else [path.name for path in unreadable(_chosen(calib or ""))]


def sha256(calib: str) -> str:
    """Of what ranges are measured on; of the packaged images "", they change with the package only."""
    digest = hashlib.sha256()
    for path in [] if calib == BUILT_IN else _chosen(calib):
        digest.update(files.read(path, most=_MOST_BYTES))
    return "" if calib == BUILT_IN else digest.hexdigest()


def _chosen(calib: str) -> list[Path]:
    root = Path(calib).expanduser()
    found = image_files(root)
    if not found:
        raise InputError(f"--calib {root} holds no images: needs a folder with some dozens of the job's own.")
    return [found[index] for index in np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int))]


def feeds(
    waiting: Sequence[Callable[[], Image.Image]], io: IoSpec, size: Resolution, host: Arrays, preprocess: Preprocess
) -> Iterator[Arrays]:
    """What a float32 graph takes, in batches of its smallest; the last is filled up with the first of itself."""
    batch = io.batch.min
    for start in range(0, len(waiting), batch):
        pixels: Array = np.stack([crop(each(), preprocess, size) for each in waiting[start : start + batch]])
        pixels = np.resize(pixels, (batch, *pixels.shape[1:])).astype(np.uint8)
        yield {io.image.name: pixels if io.pixels else normalise(pixels, preprocess), **host}
