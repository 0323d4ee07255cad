"""Pictures and curves of a report, as data URIs and SVG paths. Pure NumPy and Pillow: an export draws them too, and a
plotting library would take longer to import than all of it takes.

Legend: B pictures · R rows · C columns · W width of a token.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from ropevit_export.values import FloatArray

Pixels = npt.NDArray[np.uint8]

# From -1 to 1: blue, nearly white, orange, which people with any colour vision tell apart.
_STOPS = ((5, 68, 133), (103, 169, 207), (247, 247, 247), (241, 163, 64), (133, 62, 4))
_LEVELS = 64
# Of a drawn table: a larger grid is averaged, since its picture would only cost bytes.
_LARGEST_GRID = 64
# Tokens that a PCA is fitted to, spread over all pictures: enough for three directions. A Gram matrix of more makes the
# linear algebra start its threads, which costs a second where the machine has other work.
_FITTED = 96


def table(values_RC: FloatArray) -> str:
    """-1 to 1 as colours, a pixel an entry."""
    codes = np.clip((values_RC + 1) / 2 * (_LEVELS - 1), 0, _LEVELS - 1).round().astype(np.uint8)
    image = Image.fromarray(codes, mode=None)
    at = np.linspace(0, len(_STOPS) - 1, _LEVELS)
    palette = np.stack([np.interp(at, range(len(_STOPS)), channel) for channel in zip(*_STOPS, strict=True)], axis=1)
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    return _uri(image, "png", optimize=True)


def cosines(x: float, y: float, columns: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> str:
    """cos(x · column + y · row) over a grid, drawn. columns, rows: where they are, in the frequencies' unit."""
    drawn = np.cos(y * rows[:, None] + x * columns).astype(np.float32)
    if max(drawn.shape) > _LARGEST_GRID:
        ratio = _LARGEST_GRID / max(drawn.shape)
        size = (max(1, round(drawn.shape[1] * ratio)), max(1, round(drawn.shape[0] * ratio)))
        drawn = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.BOX))
    return table(drawn)


def photograph(pixels: Pixels, side: int = 224) -> str:
    """(H, W, 3) as a JPEG whose longer side is at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return _uri(image, "jpeg", quality=80)


def principal(features_BRCW: FloatArray) -> list[str]:
    """Three principal components of all pictures' tokens together as red, green and blue, a pixel a token."""
    flat = features_BRCW.reshape(-1, features_BRCW.shape[-1]).astype(np.float64)
    flat -= flat.mean(0)
    fitted = flat[np.unique(np.linspace(0, len(flat) - 1, _FITTED).astype(int))]
    # Of the small side's Gram matrix: the width may be thousands.
    small = len(fitted) <= fitted.shape[1]
    _, vectors = np.linalg.eigh(fitted @ fitted.T if small else fitted.T @ fitted)
    directions = (fitted.T @ vectors if small else vectors)[:, ::-1][:, :3]
    # Either sign is an eigenvector's; one is taken, so that the same features give the same picture.
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), range(directions.shape[1])])
    found = flat @ directions
    low, high = np.percentile(found, (2, 98), axis=0)
    colours = np.clip((found - low) / np.where(high > low, high - low, 1), 0, 1)
    colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])))
    maps = (colours * 255).round().astype(np.uint8).reshape(*features_BRCW.shape[:3], 3)
    return [_uri(Image.fromarray(each), "png", optimize=True) for each in maps]


def bars(lowest: int, counts: Sequence[int], *, height: float) -> str:
    """The path of a histogram over binary exponents: a bar an exponent, one wide, as high as its count's logarithm."""
    top = math.log1p(max(counts, default=1))
    steps = [
        f"M{lowest + index},{height}v-{max(1.0, height * math.log1p(count) / top):.1f}h.85V{height}z"
        for index, count in enumerate(counts)
        if count
    ]
    return "".join(steps)


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
