"""The deploy module as an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from ropevit_export.errors import TraceError
from ropevit_export.trace.deit import DeployDeit
from ropevit_export.trace.positions import FactorBank, TableBank
from ropevit_export.trace.swin import DeploySwin
from ropevit_export.values import Graph, IoSpec, ModelSpec, Weights

if TYPE_CHECKING:
    from ropevit_export.values import Factors, Tables

# The first opset with Gelu as one operator; TensorRT, ONNX Runtime and OpenVINO all read it.
OPSET = 20


def trace(spec: ModelSpec, weights: Weights, tables: Sequence[Tables] | None, io: IoSpec) -> Graph:
    """Fold the model for one size and trace it. `weights` are of that size, `tables` one pair a block."""
    bank = None if tables is None else TableBank(tables)
    form = DeployDeit if spec.family == "deit" else DeploySwin
    return _export(form(spec, weights, bank, io), spec, io)


def trace_dynamic(spec: ModelSpec, weights: Weights, factors: Sequence[Factors] | None, io: IoSpec) -> Graph:
    """Fold a DeiT for every size up to `io.resolution` and trace it. `weights` are the checkpoint's own."""
    bank = None if factors is None else FactorBank(factors)
    return _export(DeployDeit(spec, weights, bank, io), spec, io)


def _export(module: torch.nn.Module, spec: ModelSpec, io: IoSpec) -> Graph:
    example, dynamic = _example(spec, io)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[io.input.name],
            output_names=[io.output],
            dynamic_shapes=(dynamic,) if dynamic else None,
            optimize=False,  # the passes do it, in a third of the time
            verbose=False,
        )
    if program is None:
        raise TraceError("torch.onnx.export gave no program: is this torch older than 2.9?")
    # torch calls the extents by its own symbols, such as 16*rows
    program.model.graph.inputs[0].shape = ir.Shape(io.input.shape)
    return Graph(model=program.model, io=io)


def _example(spec: ModelSpec, io: IoSpec) -> tuple[torch.Tensor, dict[int, object]]:
    """An input to trace with, and what its axes range over. Extents that vary differ from one another and from 1."""
    sizes = {"batch": 2}
    dynamic: dict[int, object] = {}
    if not io.batch.is_static:
        dynamic[0] = torch.export.Dim("batch", min=1, max=max(io.batch.max, 2))
    if io.rope == "dynamic":
        rows, columns = spec.grid(io.resolution)
        sizes |= {"height": spec.patch * min(rows, 4), "width": spec.patch * min(columns, 3)}
        for axis, (name, largest) in enumerate((("rows", rows), ("columns", columns)), start=1 if io.pixels else 2):
            dynamic[axis] = spec.patch * torch.export.Dim(name, min=1, max=largest)
    shape = [extent if isinstance(extent, int) else sizes[extent] for extent in io.input.shape]
    return torch.zeros(shape, dtype=torch.uint8 if io.pixels else torch.float32), dynamic
