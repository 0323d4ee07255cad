"""onnxsim on the graph without its weights: shapes and small constants fold, large tensors never move."""

from __future__ import annotations

import onnx_ir as ir

from ropevit_export.errors import PassError
from ropevit_export.passes.places import is_parameter

# Larger initializers take no part: nothing is computed from weights alone, and onnxsim copies what it is given.
_SMALL = 1024


class FoldSequences(ir.passes.InPlacePass):
    """onnxscript's folding, for what onnxsim leaves: torch writes a split as a sequence that is then indexed.

    It runs after onnxsim because it takes a second on the raw trace and none on what is left of it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        from onnxscript.optimizer import fold_constants_ir

        return ir.passes.PassResult(model, modified=fold_constants_ir(model).modified)


class Simplify(ir.passes.FunctionalPass):
    """Fold constants and shapes with onnxsim; weights stay the tensor objects they were."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        import onnxsim

        skeleton = model.clone()
        outputs = [value.name for value in skeleton.graph.outputs]
        weights = _detach_weights(skeleton)
        try:
            proto, _ = onnxsim.simplify(ir.to_proto(skeleton), certify=False)
        except (RuntimeError, ValueError) as error:
            raise PassError(f"onnxsim failed on a graph of {len(model.graph)} nodes: {error}") from error
        simple = ir.from_proto(proto)
        _attach_weights(simple, weights)
        if [value.name for value in simple.graph.outputs] != outputs:
            raise PassError(
                f"onnxsim renamed the outputs {outputs} to {[value.name for value in simple.graph.outputs]}."
            )
        modified = len(simple.graph) != len(model.graph)
        return ir.passes.PassResult(simple, modified)


def _detach_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Make large initializers and all parameters inputs without a value: of equal ones onnxsim makes one."""
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (tensor.nbytes > _SMALL or is_parameter(name)):
            weights[name] = tensor
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return weights


def _attach_weights(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
