"""`positions.safetensors`: what a host fills a graph's position inputs from (`rope.inputs.parts`).

The format is described for other languages in `docs/position-inputs.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, numpy

from ropevit_export.errors import BundleError
from ropevit_export.machine import files

if TYPE_CHECKING:
    from ropevit_export.values import FloatArray

NAME = "positions.safetensors"
KIND = "positions"


def write(path: Path, parts: Mapping[str, FloatArray]) -> None:
    files.write(path, numpy.save(dict(parts)))


def read(path: Path) -> dict[str, FloatArray]:
    try:
        return dict(numpy.load_file(path))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is not a file of position tables: {error}.") from error
