"""ONNX graphs on disk: small files that share one file of weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ropevit_export.errors import BundleError
from ropevit_export.machine import files
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
            self._places[key] = files.append(self.path, data, alignment=_ALIGNMENT)
        return ir.ExternalTensor(
            location=self.path.name,
            offset=self._places[key],
            length=data.nbytes,
            dtype=tensor.dtype,
            shape=ir.Shape(array.shape),
            name=tensor.name or "",
            base_dir=self.path.parent,
        )


# What a protobuf message may take.
_LARGEST = 2**31 - 1


def check_single(nbytes: int) -> None:
    """Raise BundleError where weights of so many bytes don't go into one file."""
    if nbytes >= _LARGEST:
        raise BundleError(
            f"weights of {nbytes / 1e9:.2f} GB don't go into an ONNX file, which ends at 2 GB: leave --single-file out."
        )


def write(graph: Graph, path: Path, weights: WeightFile | None, metadata: dict[str, str]) -> None:
    """Write the graph with its facts in `metadata_props`; its weights go to `weights`, in the same folder, or where
    there is none into the file itself. Raises BundleError.
    """
    model = graph.model
    # torch writes its own newest; older runtimes refuse what they don't know, whether it is used or not.
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.producer_name = "ropevit-export"
    model.producer_version = None
    model.doc_string = None
    model.graph.name = metadata["model"]
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    if weights is None:
        check_single(sum(tensor.nbytes for tensor in tensors.values()))
    else:
        for name, tensor in tensors.items():
            if tensor.nbytes > _SMALL:
                model.graph.initializers[name].const_value = weights.add(tensor)
    files.write(path, ir.to_proto(model).SerializeToString())


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
