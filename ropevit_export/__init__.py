"""Checkpoints of rotary vision transformers to verified ONNX graphs and TensorRT engines.

from ropevit_export import Request, Resolution, export, find_model

bundle = export(Request(model=find_model("rope_mixed_deit_base"), resolutions=(Resolution.parse("384"),)))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropevit_export.models.timm_modules import spec_of
    from ropevit_export.models.zoo import find_model
    from ropevit_export.pipeline import export
    from ropevit_export.request import Request
    from ropevit_export.values import Dim, Resolution

__version__ = "0.1.0"
__all__ = ["Dim", "Request", "Resolution", "__version__", "export", "find_model", "spec_of"]

_HOMES = {
    "Dim": "values",
    "Request": "request",
    "Resolution": "values",
    "export": "pipeline",
    "find_model": "models.zoo",
    "spec_of": "models.timm_modules",
}


def __getattr__(name: str) -> Any:
    """The package's names on first use: some bring onnx and torch, which `--help` must not wait for, and before any of
    them a signal must find who answers it.
    """
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
