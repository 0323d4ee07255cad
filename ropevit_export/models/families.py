"""The families of models: what each module knows of its own.

A new model of a known family is a row in `zoo.py`. A new family is a module here, a deploy form in `trace`, and a line
in the table of each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ropevit_export.models import swin, vit
from ropevit_export.models.official import Official, Shapes
from ropevit_export.models.spec import Family, ModelSpec
from ropevit_export.values import Output, Resolution, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ropevit_export.values import Array


class Knowledge(Protocol):
    """What is the family's own; every function is pure. `OPTIONAL`: official tensors that a file may lack."""

    OPTIONAL: tuple[str, ...]

    def shapes(self, spec: ModelSpec, classes: int) -> Shapes:
        """Of every parameter of the model as published, under its official name, with that many classes."""
        ...

    def as_filed(self, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
        """The model with what the file decides, from official tensors: whether there are optional biases, and where the
        final norm stands.
        """
        ...

    def unused(self, spec: ModelSpec) -> Collection[str]:
        """Official names of parameters that other models of the family have and a file may hold for nothing."""
        ...

    def official(self, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> Official:
        """Tensors of any layout under official names, without the buffers that follow from the architecture.

        Raises CheckpointError where two layouts are mixed.
        """
        ...

    def frequencies(self, spec: ModelSpec, weights: Weights) -> list[Array]:
        """Of each block (2, A or 1, K/2): angular frequencies along columns and rows. Blocks that turn alike share one;
        none of a model that doesn't turn.
        """
        ...

    def reference(self, spec: ModelSpec, weights: Weights, resolution: Resolution) -> nn.Module:
        """The unfolded PyTorch model at one size, timm's as far as it has one. It shares the memory of the weights."""
        ...

    def answers(self, model: Any, image: torch.Tensor, outputs: Sequence[Output]) -> list[torch.Tensor]:
        """What the reference gives for each output, by the model's own methods as far as it has them."""
        ...


FAMILIES: dict[Family, Knowledge] = {"vit": vit, "swin": swin}
