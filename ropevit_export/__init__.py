"""RoPE-ViT checkpoints to verified ONNX graphs and TensorRT engines.

    from ropevit_export import Request, Resolution, export, find_model

    bundle = export(Request(model=find_model("rope_mixed_deit_base"), resolutions=(Resolution.parse("384"),)))
"""

from ropevit_export.models.zoo import find_model
from ropevit_export.pipeline import export
from ropevit_export.values import Dim, Request, Resolution

__version__ = "0.1.0"
__all__ = ["Dim", "Request", "Resolution", "__version__", "export", "find_model"]
