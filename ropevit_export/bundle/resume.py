"""Is a bundle that is there already the one that a request would make?"""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress
from pathlib import Path

from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError
from ropevit_export.images import calibration
from ropevit_export.machine import shards
from ropevit_export.request import Request

# What the ONNX file's bytes and the numbers in the report depend on.
PACKAGES = ("ropevit-export", "torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime",
            "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt-cu13", "openvino", "numpy", "pillow",
            "safetensors")  # fmt: skip


def existing(request: Request, folder: Path, *, force: bool = False) -> manifest.Bundle | None:
    """The bundle that this very request has made there, with the same versions and weights; None where there is none.

    Raises BundleError where another request made it; with `force`, which will replace it, it is none. Its files are not
    hashed, which takes a second a GB and is what `check` is for: a bundle appears whole or not at all.
    """
    if not (folder / manifest.MANIFEST).is_file():
        return None
    try:
        found = manifest.read(folder)
        change = _change(request, found)
        if change:
            raise BundleError(f"{folder} was built {change}: add --force to replace it.")
    except BundleError:
        if force:
            return None
        raise
    return manifest.Bundle(path=folder, manifest=found, remark=None, kept=True)


def noted(request: Request) -> dict[str, str]:
    """A request as a manifest notes it: calibration images by their content too, as weights are elsewhere in it."""
    measured_on = {} if request.calib is None else {"calib_sha256": calibration.sha256(request.calib)}
    return request.options() | measured_on


def versions() -> dict[str, str]:
    """Of Python and `PACKAGES`, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **found}


def _change(request: Request, found: manifest.Manifest) -> str | None:
    """What is not as it was when a bundle was built."""
    if found.request is None:
        return "by a version that did not note its request"
    then, now = found.request, noted(request)
    then_in, now_in = found.versions, versions()
    # Of versions those that both have: the machine that looks after a matrix may lack a builder's runtime.
    pairs = [(name, then.get(name), now.get(name)) for name in sorted(then.keys() | now.keys())]
    pairs += [(name, then_in[name], now_in[name]) for name in sorted((then_in.keys() & now_in.keys()) - {"python"})]
    for name, before, after in pairs:
        if before != after:
            return f"with {name} {before or 'not given'}, which is {after or 'not given'} now"
    path = Path(request.weights).expanduser()
    named = request.weights in ("auto", "pretrained", "random")
    if not named and path.exists() and shards.known_by(path) != found.weights.sha256:
        return f"from other weights than {path.name} holds now"
    return None
