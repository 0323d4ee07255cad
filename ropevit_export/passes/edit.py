"""Nodes and constants that passes find in a graph and add to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError

if TYPE_CHECKING:
    from ropevit_export.values import Array


def node(
    kind: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    dtype: ir.DataType | None,
    *,
    domain: str = "",
    **attributes: float,
) -> ir.Node:
    """A node of one output, which has its name."""
    made = ir.node(kind, inputs, attributes=attributes, domain=domain, name=name)
    output = made.outputs[0]
    output.name = name
    if dtype is not None:
        output.dtype = dtype
    return made


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer. By name: what several nodes share is there once. Raises PassError where the name is taken by
    another array.
    """
    if name in graph.initializers:
        return _same(graph.initializers[name], array)
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))  # type: ignore[arg-type]
    graph.register_initializer(value)
    return value


def _same(value: ir.Value, wanted: Array) -> ir.Value:
    """The initializer, which must hold this array to the bit."""
    found = array_of(value)
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        raise PassError(
            f"a pass adds the constant {value.name} as {wanted.dtype} {wanted.shape}, the graph has it as "
            f"{found.dtype} {found.shape}."
        )
    if found.tobytes() != wanted.tobytes():
        raise PassError(f"a pass adds the constant {value.name}, but the graph has other numbers under that name.")
    return value


def integers(graph: ir.Graph, numbers: Sequence[int]) -> ir.Value:
    """A shape, axes or the like."""
    name = "int64_" + "_".join(map(str, numbers)).replace("-", "m")
    return constant(graph, name, np.array(numbers, np.int64))


def array_of(value: ir.Value) -> Array:
    """A constant's numbers."""
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def extent(value: ir.Value, axis: int) -> int:
    """Of an axis that is not open."""
    found = None if value.shape is None else value.shape[axis]
    assert isinstance(found, int), f"{value.name} has the shape {value.shape}"
    return found


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that a value comes out of, if it is of a kind."""
    found = None if value is None else value.producer()
    return found if found is not None and found.op_type == kind else None


def only_user(value: ir.Value, kind: str | None = None) -> ir.Node | None:
    """The node that reads a value, if it is the only one and of a kind."""
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and kind in (None, users[0].op_type) else None


def forget(graph: ir.Graph, value: ir.Value | None) -> None:
    """Take an initializer that nothing reads any more out of the graph."""
    if value is not None and value.name is not None and value.name in graph.initializers and not value.uses():
        del graph.initializers[value.name]


def rename_to(new: ir.Value, old: ir.Value) -> None:
    """`new` takes the place and the name of `old`: ranges go by name."""
    name = old.name
    new.shape = old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}_before", name
