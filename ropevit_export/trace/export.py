"""The deploy module as an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ropevit_export.errors import TraceError
from ropevit_export.trace.deit import DeployDeit
from ropevit_export.trace.swin import DeploySwin
from ropevit_export.values import Graph, IoSpec, ModelSpec, Weights

if TYPE_CHECKING:
    from ropevit_export.values import Tables

# The first opset with Gelu as one operator; TensorRT, ONNX Runtime and OpenVINO all read it.
OPSET = 20


def trace(spec: ModelSpec, weights: Weights, tables: Sequence[Tables] | None, io: IoSpec) -> Graph:
    """Fold the model for one size and trace it. `weights` are of that size, `tables` one pair a block."""
    form = DeployDeit if spec.family == "deit" else DeploySwin
    module = form(spec, weights, tables, io).eval()
    extents = [extent if isinstance(extent, int) else 2 for extent in io.input.shape]
    example = torch.zeros(extents, dtype=torch.uint8 if io.pixels else torch.float32)
    batch = None if io.batch.is_static else {0: torch.export.Dim("batch", min=1, max=max(io.batch.max, 2))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[io.input.name],
            output_names=[io.output],
            dynamic_shapes=(batch,) if batch else None,
            optimize=False,  # the passes do it, in a third of the time
            verbose=False,
        )
    if program is None:
        raise TraceError("torch.onnx.export gave no program: is this torch older than 2.9?")
    return Graph(model=program.model, io=io)
