"""The deploy module as an ONNX graph."""

from __future__ import annotations

import linecache
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch.fx import graph_module

from ropevit_export.errors import TraceError
from ropevit_export.models.spec import Family, ModelSpec
from ropevit_export.trace.positions import FactorBank, TableBank
from ropevit_export.trace.swin import DeploySwin
from ropevit_export.trace.vit import DeployVit
from ropevit_export.values import Graph, IoSpec, Resolution, Weights

if TYPE_CHECKING:
    from ropevit_export.values import Factors, FloatArray, Tables

# The first opset with Gelu as one operator; TensorRT, ONNX Runtime and OpenVINO all read it.
OPSET = 20

FORMS: dict[Family, Callable[[ModelSpec, Weights, TableBank | None, IoSpec], torch.nn.Module]]
FORMS = {"vit": DeployVit, "swin": DeploySwin}


def trace(spec: ModelSpec, weights: Weights, tables: Sequence[Tables], io: IoSpec) -> Graph:
    """Fold the model for one size and trace it. `weights` are of that size, `tables` one pair a block that turns."""
    bank = TableBank(tables) if tables else None
    return _export(FORMS[spec.family](spec, weights, bank, io), spec, io)


def trace_dynamic(spec: ModelSpec, weights: Weights, factors: Sequence[Factors], io: IoSpec) -> Graph:
    """Fold a ViT for every size up to `io.resolution` and trace it. `weights` are the checkpoint's own."""
    by_extent = spec.rope.coordinates.follow_extent
    bank = FactorBank(factors, prefix=spec.prefix, by_extent=by_extent) if factors else None
    return _export(DeployVit(spec, weights, bank, io), spec, io)


def trace_inputs(spec: ModelSpec, weights: Weights, io: IoSpec) -> Graph:
    """Fold a ViT whose positions the host fills, for every size up to `io.resolution`, and trace it."""
    return _export(DeployVit(spec, weights, None, io), spec, io)


def export_plain(
    module: torch.nn.Module, images: FloatArray, path: Path, outputs: Sequence[str], dtype: str | None = None
) -> None:
    """What a user without this package would do: `torch.onnx.export` of the unfolded model, all options left alone.

    The graph is in the module's own format; `images` are float32. `dtype`: what the graph takes, if another format.
    """
    _hush()
    taken: torch.dtype = getattr(torch, dtype) if dtype else next(module.parameters()).dtype
    example = torch.from_numpy(images).to(taken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module, (example,), path, input_names=["image"], output_names=list(outputs), verbose=False
            )
        except Exception as error:  # of a converter, many kinds
            raise TraceError(
                f"plain torch.onnx.export fails on the unfolded model ({type(error).__name__}), as it does on complex "
                "numbers, which RoPE-Swin turns its queries with."
            ) from error


def _export(module: torch.nn.Module, spec: ModelSpec, io: IoSpec) -> Graph:
    examples, dynamic = _examples(spec, io)
    _hush()
    with warnings.catch_warnings(), _forgotten_afterwards():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=list(io.output_names),
            dynamic_shapes=dynamic if any(dynamic.values()) else None,
            optimize=False,  # the passes do it, in a third of the time
            verbose=False,
        )
    if program is None:
        raise TraceError("torch.onnx.export gave no program: is this torch older than 2.9?")
    _forget_shapes(program)
    # torch calls the extents by its own symbols, such as 16*rows
    for value, wanted in zip(program.model.graph.inputs, io.inputs, strict=True):
        value.shape = ir.Shape(wanted.shape)
    return Graph(model=program.model, io=io)


@contextmanager
def _forgotten_afterwards() -> Iterator[None]:
    """PyTorch keeps the source of every module that it writes while it traces as long as the process lives: a fifth of
    a megabyte each time for a model of two blocks. Where a release calls that by another name, it stays.
    """
    sources: dict[str, str] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    before = set(sources)
    try:
        yield
    finally:
        for name in sources.keys() - before:
            sources.pop(name, None)
            linecache.cache.pop(name, None)


def _forget_shapes(program: torch.onnx.ONNXProgram) -> None:
    """Of a trace with open shapes a megabyte more outlives it: what operators give for each of them."""
    traced = program.exported_program
    for node in () if traced is None else traced.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None and mode.shape_env is not None:
            getattr(mode.shape_env, "fake_tensor_cache", {}).clear()
            return


def _hush() -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)


def _examples(spec: ModelSpec, io: IoSpec) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, object]]]:
    """Inputs to trace with, and what their axes range over. Extents that vary differ from one another and from 1."""
    rows, columns = spec.grid(io.resolution)
    small = Resolution(height=spec.patch * min(rows, 4), width=spec.patch * min(columns, 3))
    extents = spec.extents(small) | {"batch": 2}
    ranges: dict[str, object] = {
        "batch": torch.export.Dim("batch", min=1, max=max(io.batch.max, 2)),
        "height": spec.patch * torch.export.Dim("rows", min=1, max=rows),
        "width": spec.patch * torch.export.Dim("columns", min=1, max=columns),
        # torch finds how these follow from rows and columns
        "tokens": torch.export.Dim.AUTO,
        "patches": torch.export.Dim.AUTO,
    }
    examples, dynamic = {}, {}
    for each in io.inputs:
        examples[each.name] = torch.zeros(each.sized(extents), dtype=getattr(torch, each.dtype))
        dynamic[each.name] = {axis: ranges[name] for axis, name in enumerate(each.shape) if isinstance(name, str)}
    return examples, dynamic
