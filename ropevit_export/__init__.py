"""Checkpoints of rotary vision transformers to verified ONNX graphs and TensorRT engines.

from ropevit_export import Request, Resolution, export, find_model

bundle = export(Request(model=find_model("rope_mixed_deit_base"), resolutions=(Resolution.parse("384"),)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Dim, Resolution

if TYPE_CHECKING:
    from ropevit_export.models.timm_modules import spec_of
    from ropevit_export.pipeline import export

__version__ = "0.1.0"
__all__ = ["Dim", "Request", "Resolution", "__version__", "export", "find_model", "spec_of"]


def __getattr__(name: str) -> Any:
    """`export` and `spec_of` on first use: they bring onnx and torch, and `--help` must not wait for them."""
    if name == "export":
        from ropevit_export.pipeline import export

        return export
    if name == "spec_of":
        from ropevit_export.models.timm_modules import spec_of

        return spec_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
