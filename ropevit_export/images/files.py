"""Image files, and the digits in this package."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ropevit_export.errors import InputError

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
            return image.convert("RGB")
    except OSError as error:  # PIL's own are of it
        raise InputError(f"{path} can't be read as an image: {error}.") from error
