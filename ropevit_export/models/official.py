"""A file's tensors under official names: what every family's module makes of its layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Name and shape of every parameter.
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Official:
    """`choices`: sentences on what was taken, where the file leaves a choice. `window`: rows and columns of the windows
    that it was trained with, where it shows that these are not the authors' for its size.
    """

    tensors: Mapping[str, torch.Tensor]
    window: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()
