"""A process that takes weights from a hub, for `test_hub.py`. `huggingface_hub` reads its environment on import.

It is a fork of one that has torch already, which takes seconds to import, and not yet `huggingface_hub`.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ropevit_export.errors import RopevitError
from ropevit_export.models.spec import HubFile
from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Checkpoint, Resolution

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ropevit_export.checkpoint.file", __name__])


def run(steps: list[dict[str, Any]], env: dict[str, str], *, wait: bool, timeout: float) -> list[dict[str, Any]]:
    """An outcome a step; `wait`: as long as `huggingface_hub` does between its attempts."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_main, args=(theirs, steps, env, wait))
    process.start()
    theirs.close()
    try:
        assert ours.poll(timeout), f"no answer in {timeout} s"
        found: list[dict[str, Any]] = ours.recv()  # EOFError: it has printed its traceback
        return found
    finally:
        process.kill()
        process.join()


def _main(answers: Connection, steps: list[dict[str, Any]], env: dict[str, str], wait: bool) -> None:
    os.environ.clear()
    os.environ.update(env)
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = 64  # small files too arrive bit by bit
    if not wait:
        time.sleep = lambda seconds: None
    answers.send([_outcome(step, Path(constants.HF_HUB_CACHE)) for step in steps])


def _outcome(step: dict[str, Any], cache: Path) -> dict[str, Any]:
    start = time.monotonic()
    try:
        found = _load(**step)
    except RopevitError as error:
        result = {"error": type(error).__name__, "text": str(error)}
    else:
        tensors = {name: tensor.tolist() for name, tensor in found.tensors.items()}
        result = {name: getattr(found, name) for name in ("source", "revision", "sha256", "trained")} | tensors
    kept = [path.name for path in cache.glob("*/*/**/*") if path.is_file()]
    return {"outcome": result, "seconds": time.monotonic() - start, "kept": kept}


def _load(files: list[tuple[str, str]], revision: str | None = None, weights: str | None = None) -> Checkpoint:
    from ropevit_export.checkpoint import hub, source

    wanted = tuple(HubFile(repo=repo, filename=filename) for repo, filename in files)
    if weights is None:
        return hub.fetch(wanted, revision)
    model = dataclasses.replace(find_model("deit_small"), hub=wanted)
    square = Resolution(height=224, width=224)
    return source.load(Request(model=model, resolutions=(square,), weights=weights, revision=revision), _random)


def _random() -> Checkpoint:
    return Checkpoint(dictionaries={"": {}}, source="random", revision=None, sha256="", trained=False)
