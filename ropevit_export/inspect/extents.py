"""The extents that a builder leaves open where the batch is dynamic, found from the ONNX nodes behind its kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from ropevit_export.inspect.kernels import Kernel, Tensor

Shape = tuple[int, ...]


def sized(kernels: Iterable[Kernel], shapes: Mapping[str, Iterable[Shape]], batch: int) -> tuple[Kernel, ...]:
    """The same kernels, their open extents filled in as far as only one number will do.

    A builder folds leading axes: (batch, tokens, channels) becomes (?, channels). Then ? is a multiple of the batch
    and what the leading axes of some value at the ONNX nodes behind the kernel come to; as many elements must suit
    every kernel that reads or writes the tensor. `shapes`: of the values at each node.
    """
    kernels = tuple(kernels)
    possible: dict[str, set[int]] = {}
    for kernel in kernels:
        there = {shape for node in kernel.nodes for shape in shapes.get(node, ())}
        for tensor in kernel.tensors:
            if there and (rest := _rest(tensor)):
                found = {lead * rest for shape in there for lead in _leads(shape, rest) if lead % batch == 0}
                possible[tensor.name] = possible.get(tensor.name, found) & found
    known = {name: elements.pop() for name, elements in possible.items() if len(elements) == 1}
    return tuple(_filled(kernel, known) for kernel in kernels)


def _rest(tensor: Tensor) -> int:
    """What the known extents come to; 0 where not exactly one is open."""
    known = [extent for extent in tensor.shape if isinstance(extent, int)]
    return math.prod(known) if len(known) == len(tensor.shape) - 1 else 0


def _leads(shape: Shape, rest: int) -> Iterable[int]:
    return (math.prod(shape[:axis]) for axis in range(1, len(shape)) if math.prod(shape[axis:]) == rest)


def _filled(kernel: Kernel, known: Mapping[str, int]) -> Kernel:
    def fill(tensor: Tensor) -> Tensor:
        rest = _rest(tensor)
        if not rest or tensor.name not in known:
            return tensor
        found = known[tensor.name] // rest
        shape = tuple(extent if isinstance(extent, int) else found for extent in tensor.shape)
        return dataclasses.replace(tensor, shape=shape)

    return dataclasses.replace(kernel, inputs=tuple(map(fill, kernel.inputs)), outputs=tuple(map(fill, kernel.outputs)))
