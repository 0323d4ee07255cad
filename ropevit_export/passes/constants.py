"""Equal constants become one, and parameters stay apart."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import onnx_ir as ir

from ropevit_export.passes.places import is_parameter


class DeduplicateConstants(ir.passes.InPlacePass):
    """onnxsim gives every node its own copy of small constants, and rounding can make tensors equal.

    A module's weight or bias keeps its own name where another has the same values, as all norms of a new model do: by
    it a node's place in the model is known. On disk equal bytes are stored once anyway.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        first: dict[Hashable, ir.Value] = {}
        modified = False
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or is_parameter(name) or value in model.graph.outputs:
                continue
            key = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
            if (kept := first.setdefault(key, value)) is not value:
                ir.convenience.replace_all_uses_with(value, kept)
                del model.graph.initializers[name]
                modified = True
        return ir.passes.PassResult(model, modified)
