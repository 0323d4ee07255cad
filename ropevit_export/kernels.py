"""The kernels of resizing, as PyTorch has them, for NumPy's arrays and torch's, neither of which it imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
# Keys' coefficient.
_A = -0.75


def cubic(distance: T) -> T:
    """What an entry weighs whose distance, in entries and not below 0, this is: of an array, each for itself.

    Without a branch: the kernel's two pieces are zero where they meet, at distance 1, and beyond 2.
    """
    array: Any = distance
    near, far = array.clip(max=1.0), array.clip(1.0, 2.0)
    inner = ((_A + 2) * near - (_A + 3)) * near * near + 1
    outer = ((_A * far - 5 * _A) * far + 8 * _A) * far - 4 * _A
    weights: T = inner + outer
    return weights


def linear(distance: T) -> T:
    """The same of bilinear resizing."""
    array: Any = distance
    weights: T = 1 - array.clip(max=1.0)
    return weights


# As an image's transform and torch call them.
KERNELS: Mapping[str, Callable[[Any], Any]] = {"bicubic": cubic, "bilinear": linear}
