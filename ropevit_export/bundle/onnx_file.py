"""An ONNX graph on disk: a small graph, and its weights in a file beside it.

Weights go to disk as they lie in memory. Inside the protobuf they would be copied three times, which costs more than
tracing the model does, and models end at 2 GB.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from ropevit_export.values import Graph, ModelSpec, Preprocess, RopeMode


def write(graph: Graph, path: Path, metadata: dict[str, str]) -> Path:
    """Write the graph with its facts in `metadata_props`, and return the file of its weights."""
    model = graph.model
    model.producer_name = "ropevit-export"
    model.producer_version = None
    model.doc_string = None
    model.graph.name = metadata["model"]
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
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
