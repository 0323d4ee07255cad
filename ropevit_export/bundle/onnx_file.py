"""ONNX graphs on disk: small files that share one file of weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ropevit_export.models.spec import ModelSpec, Preprocess
from ropevit_export.values import Graph, RopeMode

# Smaller tensors stay in the graph: shapes and axes, which parsers want to see.
_SMALL = 1024
_ALIGNMENT = 64


@dataclass(kw_only=True, slots=True)
class WeightFile:
    """A file that tensors are appended to as they lie in memory; what is already in it is not written again.

    The graphs of a bundle differ in their tables only, so five sizes take about the room of one. Inside a protobuf,
    weights would be copied three times, which costs more than tracing the model, and models would end at 2 GB.
    """

    path: Path
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The tensor as a reference into this file."""
        array = tensor.numpy()
        data = array.reshape(-1).view(np.uint8).data
        key = hashlib.sha256(data).hexdigest()
        if key not in self._places:
            with self.path.open("ab") as stream:
                stream.seek(0, os.SEEK_END)
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                self._places[key] = stream.tell()
                stream.write(data)
        return ir.ExternalTensor(
            location=self.path.name,
            offset=self._places[key],
            length=data.nbytes,
            dtype=tensor.dtype,
            shape=ir.Shape(array.shape),
            name=tensor.name or "",
            base_dir=self.path.parent,
        )


def write(graph: Graph, path: Path, weights: WeightFile, metadata: dict[str, str]) -> None:
    """Write the graph with its facts in `metadata_props`; its weights go to `weights`, in the same folder."""
    model = graph.model
    model.producer_name = "ropevit-export"
    model.producer_version = None
    model.doc_string = None
    model.graph.name = metadata["model"]
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes > _SMALL:
            value.const_value = weights.add(value.const_value)
    ir.save(model, path)


def metadata(spec: ModelSpec, rope: RopeMode, preprocess: Preprocess, weights: dict[str, str]) -> dict[str, str]:
    """The facts that travel inside the file, as text."""
    names = ("mean", "std", "interpolation", "crop", "crop_mode", "layout", "dtype")
    facts = {name: getattr(preprocess, name) for name in names}
    return {
        "model": spec.name,
        "rope": rope,
        "rope_kind": spec.rope.kind,
        "rope_theta": f"{spec.rope.theta:g}",
        "preprocess": json.dumps(facts),
        **{f"weights_{name}": value for name, value in weights.items()},
    }
