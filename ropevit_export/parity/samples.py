"""What artifacts are compared on: seeded noise, which excites everything, and photographs, which look like the job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from ropevit_export.images.preprocess import crop, in_format
from ropevit_export.models.spec import Preprocess
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.values import Array, FloatArray

PHOTOS = tuple(sorted(Path(__file__).with_name("photos").glob("*.jpg")))


def pixels(preprocess: Preprocess, resolution: Resolution, seed: int) -> npt.NDArray[np.uint8]:
    """(1 + photographs, H, W, 3) RGB: noise first."""
    noise = np.random.default_rng([seed, resolution.height, resolution.width])
    first = noise.integers(0, 256, (resolution.height, resolution.width, 3), dtype=np.uint8)
    photos = []
    for path in PHOTOS:
        with Image.open(path) as photo:
            photos.append(crop(photo, preprocess, resolution))
    return np.stack([first, *photos])


def feed(samples: npt.NDArray[np.uint8], images: FloatArray, preprocess: Preprocess) -> Array:
    """What the graph takes: raw pixels, or the normalised images in its format."""
    return samples if preprocess.dtype == "uint8" else in_format(images, preprocess.dtype)
