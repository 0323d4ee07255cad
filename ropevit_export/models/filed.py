"""A checkpoint as a model: its weights, and the model's row with what the file decides of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ropevit_export.models import resize
from ropevit_export.models.adopt import adopt
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Checkpoint, Resolution, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a request says of its weights.

    key        of several dictionaries in the file, the one to take
    sizes      those asked for
    published  not a file of the user's own: windows then follow the authors' rule at every size
    """

    key: str | None
    sizes: Sequence[Resolution]
    published: bool


def read(spec: ModelSpec, checkpoint: Checkpoint, given: Given) -> tuple[ModelSpec, Weights]:
    """Raises CheckpointError."""
    weights = adopt(spec, checkpoint, key=given.key, sizes=given.sizes)
    spec = FAMILIES[spec.family].as_filed(spec, weights.tensors)
    if spec.own_window is None and not given.published:
        spec = replace(spec, own_window=weights.window)
    sentences = [sentence for size in given.sizes for sentence in resize.said(spec, weights, size)]
    return spec, replace(weights, choices=(*weights.choices, *dict.fromkeys(sentences)))
