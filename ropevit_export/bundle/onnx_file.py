"""An ONNX graph on disk: one file, or above protobuf's 2 GB a graph with its weights beside it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from ropevit_export.values import Graph, ModelSpec, Preprocess, RopeMode

# Protobuf ends at 2**31 bytes; shapes, names and nodes take a few of them.
_PROTOBUF_LIMIT = 2**31 - 2**24


def write(graph: Graph, path: Path, metadata: dict[str, str], *, limit: int = _PROTOBUF_LIMIT) -> Path | None:
    """Write the model with its facts in `metadata_props`. Returns the weights' file where there is one."""
    model = graph.model
    model.producer_name = "ropevit-export"
    model.producer_version = None
    model.doc_string = None
    model.graph.name = metadata["model"]
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in weights) < limit:
        ir.save(model, path)
        return None
    data = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=data.name)
    return data


def metadata(spec: ModelSpec, rope: RopeMode, preprocess: Preprocess, weights: dict[str, str]) -> dict[str, str]:
    """The facts that travel inside the file, as text."""
    facts = {"mean": preprocess.mean, "std": preprocess.std, "interpolation": preprocess.interpolation,
             "crop": preprocess.crop, "layout": preprocess.layout, "dtype": preprocess.dtype}  # fmt: skip
    return {
        "model": spec.name,
        "rope": rope,
        "rope_kind": spec.rope.kind,
        "rope_theta": f"{spec.rope.theta:g}",
        "preprocess": json.dumps(facts),
        **{f"weights_{name}": value for name, value in weights.items()},
    }
