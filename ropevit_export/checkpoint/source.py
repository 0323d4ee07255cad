"""`--weights`: where a model's weights come from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ropevit_export.checkpoint import file, hub
from ropevit_export.errors import CheckpointError, HubUnreachableError
from ropevit_export.models.spec import ModelSpec
from ropevit_export.request import Request
from ropevit_export.values import Checkpoint

PACKAGED = Path(__file__).parents[1] / "models" / "digits" / "weights.safetensors"


def load(request: Request, random: Callable[[], Checkpoint]) -> Checkpoint:
    """Follow `request.weights`: auto, pretrained, random, or a file.

    auto takes random weights only where no hub can be reached: a hub that answers "no such file" or sends a damaged
    one is an error, because the user then has a connection and believes in trained weights.
    """
    if request.weights == "random":
        return random()
    if request.weights not in ("auto", "pretrained"):
        return file.read(Path(request.weights).expanduser())
    if request.model.packaged is not None:
        return _packaged(request.model, request.model.packaged)
    if not request.model.hub:
        raise CheckpointError(f"{request.model.short} has no published weights: give --weights PATH, or random.")
    try:
        return hub.fetch(request.model.hub, request.revision)
    except HubUnreachableError as error:
        if request.weights == "auto":
            return random()
        raise CheckpointError(f"{error} --weights pretrained needs a connection, or give a file.") from error


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """A module's own `state_dict()`; it is known by its tensors' bytes."""
    digest = hashlib.sha256()
    kept = {}
    for name, tensor in sorted(tensors.items()):
        kept[name] = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(kept[name].view(torch.uint8).numpy().data if tensor.numel() and tensor.ndim else b"")
    return Checkpoint(
        dictionaries={"": kept}, source="state_dict", revision=None, sha256=digest.hexdigest(), trained=True
    )


def _packaged(model: ModelSpec, sha256: str) -> Checkpoint:
    """The weights that this package carries, as they were when the model's row was written."""
    found = file.read(PACKAGED)
    if found.sha256 != sha256:
        raise CheckpointError(
            f"the packaged weights of {model.short} have SHA-256 {found.sha256[:12]}…, needed {sha256[:12]}…: "
            "install the package again."
        )
    return dataclasses.replace(found, source=f"ropevit-export, {PACKAGED.parent.name}/{PACKAGED.name}")
