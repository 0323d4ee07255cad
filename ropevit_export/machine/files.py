"""What a file is known by in manifests, checkpoints and the build cache, and files behind links."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read in parts, since weights are large."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def without_links(model: Path) -> Iterator[Path]:
    """A model file as one that is no link and has no links to weights beside it, for a library that follows none out of
    the folder. The hub's cache, DVC and Bazel keep files behind such links.
    """
    parts = [model, *model.parent.glob("*.data"), *model.parent.glob(f"{model.stem}.bin")]
    if not any(each.is_symlink() for each in parts):
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for each in parts:
            real = Path(folder) / each.name
            try:
                os.link(each.resolve(), real)
            except OSError:  # on another filesystem
                shutil.copyfile(each, real)
        yield Path(folder) / model.name
