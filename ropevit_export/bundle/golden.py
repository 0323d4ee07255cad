"""The golden file: inputs and the reference's outputs, for programs that have no PyTorch to compare with.

Where the host fills position inputs it also holds some rows of what it must fill: `filled.NAME`, and which tokens or
patches they are of, `filled.NAME.at`.

A safetensors file: 8 bytes little-endian header length, a JSON header with dtype, shape and offsets, raw tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, numpy

from ropevit_export.errors import BundleError
from ropevit_export.machine import files
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.bundle.manifest import ArtifactEntry
    from ropevit_export.values import Array, Arrays

# Of images: what graphs take.
DTYPES = ("float32", "float16", "bfloat16", "uint8")


def name(resolution: Resolution) -> str:
    return f"golden-{resolution}.safetensors"


# How many tokens' rows of a position input are written: whole tables would be larger than the answers.
_ROWS = 8


def write(path: Path, images: Array, expected: Arrays, host: Arrays) -> None:
    """`images`: what the graph takes, in its format. `expected`: what the reference answers, sample by sample. `host`:
    what is fed beside the images.

    The first output is called `expected`, a further one `expected.NAME`.
    """
    tensors = {key: expected[output] for key, output in _keys(expected).items()} | {"image": images}
    for name, array in host.items():
        axis = 0 if array.ndim == 2 else 1  # (patches, W), or (L, tokens, A, P)
        at = np.unique(np.linspace(0, array.shape[axis] - 1, _ROWS).astype(np.int64))
        tensors |= {f"filled.{name}": array.take(at, axis), f"filled.{name}.at": at}
    files.write(path, numpy.save({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)}))


def read(path: Path, outputs: list[str]) -> tuple[Array, dict[str, Array]]:
    """(images, expected by output), of as many samples. Raises BundleError for what nothing could be compared with."""
    try:
        files.require_regular(path.stat(), path)
        tensors = numpy.load_file(path)
        images, expected = tensors["image"], {output: tensors[key] for key, output in _keys(outputs).items()}
    except OSError as error:
        raise BundleError(f"{path} is not a golden file: {error.strerror or error}.") from error
    except KeyError as error:
        raise BundleError(f"{path} is not a golden file: it has no tensor {error}.") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a golden file: {error}.") from error
    _require_comparable(path, images, expected)
    return images, expected


def _require_comparable(path: Path, images: Array, expected: Mapping[str, Array]) -> None:
    if images.ndim != 4 or 0 in images.shape or images.dtype.name not in DTYPES:
        raise BundleError(f"{path} is not a golden file: its images are of shape {images.shape}, {images.dtype}.")
    for name, answers in expected.items():
        if answers.dtype != np.float32 or answers.ndim < 2 or 0 in answers.shape or len(answers) != len(images):
            raise BundleError(
                f"{path} is not a golden file: it has {answers.dtype} answers of {name} for {answers.shape[:1]} of "
                f"{len(images)} images, each needs one of float32."
            )
        if not np.isfinite(answers).all():
            raise BundleError(f"{path} is not a golden file: its answers of {name} hold NaN or infinite values.")
        if not answers.any():
            raise BundleError(f"{path} is not a golden file: its answers of {name} are all zero.")


def require_of(path: Path, artifact: ArtifactEntry, size: Resolution, images: Array, expected: Arrays) -> None:
    """Raises BundleError for images that the artifact does not take at a size, or answers of other shapes than its
    outputs have.
    """
    image, sides = artifact.inputs[0], {"height": size.height, "width": size.width}
    wanted = tuple(sides.get(str(extent), extent) for extent in image.shape[1:])
    if images.shape[1:] != wanted or images.dtype.name != image.dtype:
        raise BundleError(
            f"{path} is not a golden file of this bundle: its images are of shape {images.shape}, {images.dtype}; the "
            f"graph takes {image.dtype} of {wanted} each."
        )
    for output in artifact.outputs:
        found, shape = expected[output.name].shape, output.shape
        if len(found) != len(shape) or any(
            isinstance(extent, int) and extent != held for extent, held in zip(shape[1:], found[1:], strict=True)
        ):
            raise BundleError(
                f"{path} is not a golden file of this bundle: its answers of {output.name} are of shape {found}; the "
                f"graph gives {list(shape)}."
            )


def _keys(outputs: Iterable[str]) -> dict[str, str]:
    """Outputs by their tensors' names in the file."""
    return {f"expected.{output}" if index else "expected": output for index, output in enumerate(outputs)}
