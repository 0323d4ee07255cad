"""The golden file: inputs and the reference's outputs, for programs that have no PyTorch to compare with.

A safetensors file: 8 bytes little-endian header length, a JSON header with dtype, shape and offsets, raw tensors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, numpy

from ropevit_export.errors import BundleError
from ropevit_export.values import Resolution

Array = npt.NDArray[np.generic]


def name(resolution: Resolution) -> str:
    return f"golden-{resolution}.safetensors"


def write(path: Path, image: Array, expected: Array) -> None:
    """`image` is what the graph takes, in its format; `expected` what the reference answers, sample by sample."""
    path.write_bytes(numpy.save({"expected": np.ascontiguousarray(expected), "image": np.ascontiguousarray(image)}))


def read(path: Path) -> tuple[Array, Array]:
    """(image, expected)."""
    try:
        tensors = numpy.load_file(path)
        return tensors["image"], tensors["expected"]
    except (SafetensorError, KeyError, OSError) as error:
        raise BundleError(f"{path} is not a golden file: {error}.") from error
