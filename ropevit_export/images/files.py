"""Image files, and the digits in this package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ropevit_export.errors import InputError, first_line
from ropevit_export.machine import files

# What `--data` and `--calib` call the images in this package.
BUILT_IN = "digits"
DIGITS_FOLDER = Path(__file__).parents[1] / "models" / "digits"
# Of a picture; PIL draws its own line at twice 89 million.
MOST_PIXELS = 178_000_000
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and the folders in it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def opened(path: Path) -> Image.Image:
    """In RGB; raises InputError."""
    try:
        with files.regular(path) as stream, Image.open(stream) as image:
            _require_room(image)
            return rgb(image)
    except Exception as error:  # PIL's readers raise what damage leads them to: struct.error, IndexError, bombs
        raise InputError(f"{path} can't be read as an image: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # PIL names the stream by a number that is another at every run.
    return re.sub(r" <_io\.\w+ name=\d+>", "", first_line(said)).rstrip(".")


def _require_room(image: Image.Image) -> None:
    """Raises InputError for a picture that would take gigabytes, whatever its file's size is."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"it has {width}x{height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")


def rgb(image: Image.Image) -> Image.Image:
    """Raises InputError for pixels of more than 8 bits, which PIL would cut off at 255."""
    if image.mode[:1] in ("I", "F"):
        raise InputError(f"its pixels are of mode {image.mode}, needs 8 bits a channel: scale them to 0-255 first.")
    return image.convert("RGB")


def unreadable(pictures: Iterable[Path]) -> dict[Path, str]:
    """Of pictures those that can't be read, and why. Each is decoded, a JPEG at an eighth of its size."""
    out = {}
    for path in pictures:
        try:
            with files.regular(path) as stream, Image.open(stream) as image:
                _require_room(image)
                image.draft("RGB", (1, 1))
                rgb(image)
        except Exception as error:
            out[path] = _reason(error)
    return out


def readable(pictures: Sequence[Path], option: str, *, skip: bool) -> list[Path]:
    """Those that can be read. Raises InputError for one that can't, unless they are to be left out, and for none."""
    faults = unreadable(pictures)
    if faults and not skip:
        path, reason = next(iter(faults.items()))
        raise InputError(
            f"{len(faults)} of {len(pictures)} pictures of {option} can't be read, such as {path}: {reason}. "
            "Replace them, or leave them out with --skip-unreadable."
        )
    if faults and len(faults) == len(pictures):
        raise InputError(f"none of the {len(pictures)} pictures of {option} can be read: needs others.")
    return [path for path in pictures if path not in faults]
