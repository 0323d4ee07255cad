"""`--weights`: where a model's weights come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ropevit_export.checkpoint import file, hub
from ropevit_export.errors import CheckpointError, HubUnreachableError
from ropevit_export.values import Checkpoint, Request


def load(request: Request, random: Callable[[], Checkpoint]) -> Checkpoint:
    """Follow `request.weights`: auto, pretrained, random, or a file.

    auto takes random weights only where no hub can be reached: a hub that answers "no such file" or sends a damaged
    one is an error, because the user then has a connection and believes in trained weights.
    """
    if request.weights == "random":
        return random()
    if request.weights not in ("auto", "pretrained"):
        return file.read(Path(request.weights).expanduser())
    try:
        return hub.fetch(request.model.hub, request.revision)
    except HubUnreachableError as error:
        if request.weights == "auto":
            return random()
        raise CheckpointError(f"{error} --weights pretrained needs a connection, or give a file.") from error
