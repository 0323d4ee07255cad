"""How texts of options become values, and choices whose owners are too heavy to import for `--help`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import click

from ropevit_export.errors import UsageError
from ropevit_export.models.spec import CropMode

ENGINES = ("auto", "none", "tensorrt", "tensorrt-rtx", "openvino")
BACKENDS = (
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "onnxruntime-tensorrt-rtx",
    "onnxruntime-openvino",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)
PEERS = ("eager", "compile", "compile-bf16", "torchao-int8", "plain", "plain-int8", "static-int8", "nncf-int8", "gemms")


def list_of(
    parse: Callable[[str], Any],
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[Any, ...]]:
    """A callback for an option that may be repeated and may hold commas."""

    def callback(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(parse(part.strip()) for value in values for part in value.split(","))

    return callback


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For a shell's completion: every name of a model that goes on so; of several by commas the last one's."""
    from ropevit_export.models import zoo

    before, comma, last = incomplete.rpartition(",")
    names = {name for spec in (*zoo.MODELS, *zoo.EXAMPLES) for name in (spec.short, spec.name, spec.timm) if name}
    return sorted(f"{before}{comma}{name}" for name in names if name.startswith(last))


def one(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A callback for an option that is given once."""
    return lambda ctx, param, value: value if value is None else parse(value)


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--batch {text!r} is not a number of images, such as 8.")
    return int(text)


def channels(text: str) -> tuple[float, float, float]:
    """`0.485,0.456,0.406` for red, green and blue, or one number for all three."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{text!r} is neither one number nor three, such as 0.485,0.456,0.406.")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def crop(text: str) -> tuple[float, CropMode]:
    """`squash`, or the size cut from the centre over the size resized to, such as 0.875."""
    if text == "squash":
        return 1.0, "squash"
    try:
        return float(text), "center"
    except ValueError:
        raise UsageError(f"--crop {text!r} is neither squash nor a ratio, such as 0.875.") from None


def window(text: str) -> tuple[int, int]:
    """`7`, or `6x12`: rows and columns of tokens."""
    found = re.fullmatch(r"([1-9]\d{0,2})(?:[xX]([1-9]\d{0,2}))?", text, re.ASCII)
    if not found:
        raise UsageError(f"--window {text!r} is neither N nor RxC, rows and columns of tokens, such as 7 or 6x12.")
    return int(found[1]), int(found[2] or found[1])


def target(text: str) -> str:
    """`89`, `8.9`, `sm89` or `SM_89`."""
    digits = text.lower().removeprefix("sm").strip("_").replace(".", "")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"--sm {text!r} is not a compute capability, such as 89 or 120.")
    return digits
