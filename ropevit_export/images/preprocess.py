"""A model's evaluation transform, on PIL: resize with antialiasing, crop the centre or squash, normalise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401  makes bfloat16 a name that NumPy knows
import numpy as np
import numpy.typing as npt
from PIL import Image

from ropevit_export.images.files import rgb
from ropevit_export.models.spec import Preprocess, Transform
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.values import Array, FloatArray


_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def crop(image: Image.Image, preprocess: Transform, resolution: Resolution) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB pixels. The short side goes to int(size / crop ratio), as torchvision's Resize does it, and the
    centre is cut out; or, squashed, both sides go to the size.

    For a size that is not square, the smallest resize that covers it: this project's extension.
    """
    width, height = _resized(image.size, preprocess, resolution)
    resampling = _RESAMPLING[preprocess.interpolation]
    resized = np.asarray(_resize(rgb(image), width, height, resampling))
    top = round((height - resolution.height) / 2.0)
    left = round((width - resolution.width) / 2.0)
    return resized[top : top + resolution.height, left : left + resolution.width]


def _resized(image: tuple[int, int], preprocess: Transform, resolution: Resolution) -> tuple[int, int]:
    """(width, height) to resize an image of such a size to."""
    if preprocess.crop_mode == "squash":
        return resolution.width, resolution.height
    width, height = image
    cover = [int(side / preprocess.crop) for side in (resolution.height, resolution.width)]
    if cover[0] * width <= cover[1] * height:  # the width decides
        return cover[1], int(cover[1] * height / width)
    return int(cover[0] * width / height), cover[0]


def _resize(image: Image.Image, width: int, height: int, resampling: Image.Resampling) -> Image.Image:
    """As Pillow 13 does: one axis after the other, and the height first where it shrinks more than twice as much.

    What lies between is rounded to 8 bits, so the order shows. Older releases always begin with the width.
    """
    tall = image.height - height > max(0, 2 * (image.width - width))
    first = (image.width, height) if tall else (width, image.height)
    return image.resize(first, resampling).resize((width, height), resampling)


def normalise(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> FloatArray:
    """(..., H, W, 3) pixels → (..., 3, H, W) float32, as the model in PyTorch takes them."""
    levels = np.arange(256)[:, None] / 255.0  # a pixel has no other values: computed once, then looked up
    table = ((levels - np.array(preprocess.mean)) / np.array(preprocess.std)).astype(np.float32)
    out = np.empty((*pixels.shape[:-3], 3, *pixels.shape[-3:-1]), np.float32)
    for channel in range(3):
        np.take(table[:, channel], pixels[..., channel], out=out[..., channel, :, :], mode="clip")  # in place
    return out


def in_format(array: Array, dtype: str) -> Array:
    """In the format that a graph's input has, such as bfloat16: rounded once, to nearest."""
    return array.astype(dtype, copy=False)
