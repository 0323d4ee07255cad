"""A float32 graph in ONNX Runtime, for what is measured on it before conversion: errors, overflow, 8-bit ranges."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ropevit_export.backends.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays


class Float32Graph:
    """A model in memory, loaded by way of a file: inside a protobuf weights would end at 2 GB. The model stays."""

    def __init__(self, model: ir.Model) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "float32.onnx"
            ir.save(model, path, external_data="float32.data")
            self._session = OnnxRuntime(path, in_order=True)

    @property
    def describe(self) -> str:
        return self._session.describe

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Every output by its name; raises BackendError."""
        return self._session.run(feeds)
