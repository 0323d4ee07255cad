"""`positions.safetensors`: what a host fills a graph's position inputs from (`rope.inputs.parts`).

The format is described for other languages in `docs/position-inputs.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, numpy

from ropevit_export.errors import BundleError
from ropevit_export.machine import files

if TYPE_CHECKING:
    from ropevit_export.values import FloatArray

NAME = "positions.safetensors"
KIND = "positions"


def write(path: Path, parts: Mapping[str, FloatArray]) -> None:
    files.write(path, numpy.save(dict(parts)))


_TABLES = ("cos_x", "sin_x", "cos_y", "sin_y")
_EMBEDDINGS = ("pos_embed", "pos_embed_bilinear")


def read(path: Path, largest: tuple[int, int]) -> dict[str, FloatArray]:
    """The parts of grids up to `largest` (rows, columns). Raises BundleError for a file that does not have them all, in
    shapes that belong together.
    """
    try:
        files.require_regular(path.stat(), path)
        parts = dict(numpy.load_file(path))
    except OSError as error:
        raise BundleError(f"{path} is not a file of position tables: {error.strerror or error}.") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a file of position tables: {error}.") from error
    if fault := _fault(parts, *largest):
        raise BundleError(f"{path} is not a file of position tables: {fault}.")
    return parts


def _fault(parts: Mapping[str, FloatArray], rows: int, columns: int) -> str:
    """What is wrong with the parts, in words; "" for nothing."""
    tables = [name for name in parts if name not in _EMBEDDINGS]
    ending = "" if "cos_x" in parts else "_by_extent"
    if sorted(tables) not in ([], sorted(name + ending for name in _TABLES)) or not parts:
        return f"it holds {', '.join(sorted(parts)) or 'nothing'}, needs cos and sin of x and y, or an embedding"
    for name, part in parts.items():
        rank = 3 if name in _EMBEDDINGS else 4
        if part.dtype.name != "float32" or part.ndim != rank or 0 in part.shape:
            return f"{name} is {part.dtype} {part.shape}, needs float32 of {rank} axes"
        if not np.isfinite(part).all():
            return f"{name} holds NaN or infinite values"
    for axis, extent in (("x", columns), ("y", rows)) if tables else ():
        cos, sin = (parts[f"{kind}_{axis}{ending}"].shape for kind in ("cos", "sin"))
        needed = extent if not ending else extent * (extent + 1) // 2
        other = parts[f"cos_x{ending}"].shape
        if cos != sin or cos[1] < needed or (cos[0], *cos[2:]) != (other[0], *other[2:]):
            return f"tables along {axis} are of shapes {cos} and {sin}, needs the same with {needed} rows and more"
    return ""
