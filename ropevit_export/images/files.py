"""Image files, and the digits in this package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ropevit_export.errors import InputError, first_line

# What `--data` and `--calib` call the images in this package.
BUILT_IN = "digits"
DIGITS_FOLDER = Path(__file__).parents[1] / "models" / "digits"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and the folders in it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def opened(path: Path) -> Image.Image:
    """In RGB; raises InputError."""
    try:
        with Image.open(path) as image:
            return rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL's readers raise
        raise InputError(f"{path} can't be read as an image: {error}.") from error


def rgb(image: Image.Image) -> Image.Image:
    """Raises InputError for pixels of more than 8 bits, which PIL would cut off at 255."""
    if image.mode[:1] in ("I", "F"):
        raise InputError(f"its pixels are of mode {image.mode}, needs 8 bits a channel: scale them to 0-255 first.")
    return image.convert("RGB")


def unreadable(files: Iterable[Path]) -> dict[Path, str]:
    """Of pictures those that can't be read, and why. Each is decoded, a JPEG at an eighth of its size."""
    out = {}
    for path in files:
        try:
            with Image.open(path) as image:
                image.draft("RGB", (1, 1))
                rgb(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, InputError) as error:
            out[path] = first_line(error)
    return out


def readable(files: Sequence[Path], option: str, *, skip: bool) -> list[Path]:
    """Those that can be read. Raises InputError for one that can't, unless they are to be left out, and for none."""
    faults = unreadable(files)
    if faults and not skip:
        path, reason = next(iter(faults.items()))
        raise InputError(
            f"{len(faults)} of {len(files)} pictures of {option} can't be read, such as {path}: {reason.rstrip('.')}. "
            "Replace them, or leave them out with --skip-unreadable."
        )
    if faults and len(faults) == len(files):
        raise InputError(f"none of the {len(files)} pictures of {option} can be read: needs others.")
    return [path for path in files if path not in faults]
