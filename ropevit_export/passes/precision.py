"""The graph's own number format, inside and of its inputs and outputs: what a runtime computes in is written in the
graph, not asked for at build time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError
from ropevit_export.formats import FORMATS
from ropevit_export.passes import edit
from ropevit_export.values import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What a 16-bit graph computes in its own format, and what it leaves in float32.

    `keep`: modules whose operations stay float32, by name, with the reason.
    """

    precision: Precision
    keep: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType[FORMATS[self.precision].onnx]

    @property
    def largest(self) -> float:
        """What the format can hold."""
        return FORMATS[self.precision].largest

    def keeps(self, node: ir.Node) -> bool:
        """Whether a node stays float32: one that reads a parameter of a kept module, or of a module inside it."""
        names = [value.name or "" for value in node.inputs if value is not None and value.is_initializer()]
        return any(name.startswith(f"{module}.") for name in names for module in self.keep)


# What needs no exception, in either format: LayerNormalization computes mean and variance in float32 by its own
# definition (`stash_type` 1); runtimes accumulate matrix products and fused attention, softmax included, in float32,
# and a cast before the softmax would stop that fusion; rounded rotary tables err no more than the queries they turn
# (2e-4 in float16, 2e-3 in bfloat16); tables of a graph of any size are computed in float32, up to where they meet the
# image. RMS norms have no operator before opset 23: their squares, which float16 could hold of values to 255 only, and
# what is made of them are float32 by `statistics`.
POLICIES: dict[Precision, Policy] = {
    "fp16": Policy(precision="fp16"),
    "bf16": Policy(
        precision="bf16",
        keep={
            "embed": "ONNX has no bfloat16 convolution before opset 22",
            "head": "with 8 bits a logit, close classes become ties; one token's product costs nothing",
        },
    ),
}


class ToHalf(ir.passes.InPlacePass):
    """Float32 weights, tables and values become the policy's format; the graph's inputs and outputs keep their types.

    Raises PassError where a weight is too large for the format, by name: it would become infinity.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        data = data_nodes(graph).keys() - statistics(graph)
        wanted = {node: self._dtype(node, node in data) for node in graph}
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node, dtype in wanted.items():
            for index, value in enumerate(node.inputs):
                if node.op_type != "Shape" and value is not None and _is_float(value) and value.dtype != dtype:
                    node.replace_input_with(index, self._converted(graph, value, dtype, casts))
            _retype(node, dtype)
        for index, value in enumerate(graph.outputs):
            if value.dtype == self.policy.dtype:
                graph.outputs[index] = _cast_output(graph, value, ir.DataType.FLOAT)
        for value in [value for value in graph.initializers.values() if not value.uses()]:
            del graph.initializers[value.name or ""]
        graph.sort()
        return ir.passes.PassResult(model, modified=True)

    def _dtype(self, node: ir.Node, is_data: bool) -> ir.DataType:
        """What a node computes in."""
        return self.policy.dtype if is_data and not self.policy.keeps(node) else ir.DataType.FLOAT

    def _converted(
        self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
    ) -> ir.Value:
        """The value in another format: a rounded initializer, or the output of a Cast beside the value's source."""
        if (value, dtype) not in casts:
            if value.is_initializer():
                casts[value, dtype] = self._rounded(graph, value)
            else:
                node, casts[value, dtype] = _cast(value, dtype)
                source = value.producer()
                if source is None:
                    graph.insert_before(graph[0], node)
                else:
                    graph.insert_after(source, node)
        return casts[value, dtype]

    def _rounded(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        array = value.const_value.numpy()
        largest = float(np.abs(array).max(initial=0.0))
        if largest > self.policy.largest:
            raise PassError(
                f"{value.name} holds {largest:.3g}, {self.policy.precision} ends at {self.policy.largest:g}: use "
                "--precision bf16 or fp32 for this model."
            )
        name = f"{value.name}_{self.policy.precision}" if len(_users(value)) > 1 else value.name
        rounded = ir.tensor(array.astype(self.policy.dtype.numpy()), dtype=self.policy.dtype, name=name)
        if name == value.name:
            del graph.initializers[value.name or ""]
        made = ir.Value(name=name, const_value=rounded, type=ir.TensorType(self.policy.dtype), shape=value.shape)
        graph.register_initializer(made)
        return made


class RetypeIo(ir.passes.InPlacePass):
    """Floating-point inputs and outputs take a format.

    A Cast between this format and the same inside falls away; where the graph goes on in another, one comes in.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs = [value for value in graph.inputs if _is_float(value) and value.dtype != self.dtype]
        outputs = [at for at, value in enumerate(graph.outputs) if _is_float(value) and value.dtype != self.dtype]
        for value in inputs:
            self._retype_input(graph, value)
        for index in outputs:
            self._retype_output(graph, index)
        graph.sort()
        return ir.passes.PassResult(model, modified=bool(inputs or outputs))

    def _retype_input(self, graph: ir.Graph, value: ir.Value) -> None:
        before = value.dtype
        assert before is not None
        casts = [user for user in _users(value) if user.op_type == "Cast" and user.outputs[0].dtype == self.dtype]
        others = [(user, index) for user, index in value.uses() if user not in casts and user.op_type != "Shape"]
        value.dtype = self.dtype
        for cast in casts:
            cast.outputs[0].replace_all_uses_with(value)
            graph.remove(cast, safe=True)
        if others:
            node, again = _cast(value, before)
            graph.insert_before(graph[0], node)
            for user, index in others:
                user.replace_input_with(index, again)

    def _retype_output(self, graph: ir.Graph, index: int) -> None:
        value = graph.outputs[index]
        cast, name = value.producer(), value.name
        inside = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
        if cast is None or inside is None or inside.dtype != self.dtype:
            graph.outputs[index] = _cast_output(graph, value, self.dtype)
            return
        graph.outputs[index] = inside
        graph.remove(cast, safe=True)
        value.name, inside.name = f"{name}_before", name


def data_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """Nodes that the image's values reach, in order; a shape is not a value."""
    reached = set(graph.inputs)
    nodes: dict[ir.Node, None] = {}
    for node in graph:
        if node.op_type != "Shape" and not reached.isdisjoint(node.inputs):
            nodes[node] = None
            reached.update(node.outputs)
    return nodes


def statistics(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of x / sqrt(mean(x·x) + eps): from the square to the quotient."""
    found: set[ir.Node] = set()
    for root in graph:
        if root.op_type != "Sqrt":
            continue
        total = edit.producer(root.inputs[0], "Add")
        mean = None if total is None else edit.producer(total.inputs[0], "ReduceMean")
        square = None if mean is None else edit.producer(mean.inputs[0], "Mul")
        quotient = edit.only_user(root.outputs[0], "Div")
        if total is None or mean is None or square is None or quotient is None:
            continue
        if square.inputs[0] is square.inputs[1] is quotient.inputs[0]:
            found |= {square, mean, total, root, quotient}
    return found


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _users(value: ir.Value) -> set[ir.Node]:
    return {user for user, _ in value.uses()}


def _retype(node: ir.Node, dtype: ir.DataType) -> None:
    target = node.attributes.get("to")
    if node.op_type == "Cast" and target is not None and target.as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", dtype)
    for output in node.outputs:
        if output.dtype == ir.DataType.FLOAT:
            output.dtype = dtype


def _cast(value: ir.Value, dtype: ir.DataType) -> tuple[ir.Node, ir.Value]:
    """A node that turns the value into another format, and its output."""
    short = dtype.short_name()
    node = ir.node("Cast", [value], attributes={"to": dtype}, name=f"{value.name}_to_{short}")
    cast = node.outputs[0]
    cast.name, cast.dtype, cast.shape = f"{value.name}_{short}", dtype, value.shape
    return node, cast


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """An output of the graph in another format, behind a Cast that takes its name."""
    name = value.name
    assert value.dtype is not None
    value.name = f"{name}_{value.dtype.short_name()}"
    node, cast = _cast(value, dtype)
    cast.name = name
    graph.append(node)
    return cast
