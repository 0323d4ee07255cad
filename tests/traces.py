"""What torch has traced already: tests ask for the same few modules again and again, which takes most of their time.

A module is the same if everything in it is, weights, tables and switches, and so are its inputs and outputs. Code that
a test exchanges is not seen: such a test, and one about tracing itself, uses `traced_anew` of `conftest.py`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx import ModelProto
from torch.onnx._internal.exporter._registration import ONNXRegistry

from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace import export
from ropevit_export.values import Graph, IoSpec

TRACE = export._export
# Larger are whole models; no two tests ask for the same one of these.
LARGEST = 64 << 20
# For every export torch reads its translations of 500 operators anew, which takes as long as tracing a block.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


class _Printer(pickle.Pickler):
    """Tensors by their numbers; as torch pickles them, equal ones differ."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple, ((str(value.dtype), tuple(value.shape), value.numpy().tobytes()),)
        return NotImplemented


def fingerprint(*values: object) -> str:
    stream = io.BytesIO()
    _Printer(stream).dump(values)
    return hashlib.sha256(stream.getbuffer()).hexdigest()


def once(folder: Path) -> Callable[[torch.nn.Module, ModelSpec, IoSpec], Graph]:
    """`export._export`, keeping what it makes in a folder, which processes may share."""

    def trace(module: torch.nn.Module, spec: ModelSpec, io: IoSpec) -> Graph:
        kept = folder / fingerprint(module, spec, io)
        if kept.exists():
            return Graph(model=ir.from_proto(ModelProto.FromString(kept.read_bytes())), io=io)
        graph = TRACE(module, spec, io)
        constants = [value.const_value for value in graph.model.graph.initializers.values()]
        if sum(each.nbytes for each in constants if each is not None) <= LARGEST:
            partial = kept.with_name(f"{kept.name}.{os.getpid()}")
            partial.write_bytes(ir.to_proto(graph.model).SerializeToString())
            partial.rename(kept)
        return graph

    return trace
