"""What the linear layers of a graph are given, measured on images, and its outliers moved into their weights.

Ranges are minimum and maximum. On a trained DINOv2 ViT-S/14 every clipped range (percentile, least squares) was worse:
a vision transformer lives on a few large channels, and features fell from 0.994 to between 0.905 and 0.963 (cosine).

Legend: I inputs of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError
from ropevit_export.passes import edit
from ropevit_export.passes.linear import Linear, linear_layers, readers

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# How much of an outlier goes from activations into weights, as a power: SmoothQuant's (Xiao et al., arXiv:2211.10438).
_MOVED = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Smallest and largest value of every channel of a tensor, its last axis, over all calibration images."""

    low: Array
    high: Array

    def merged(self, other: Range) -> Range:
        return Range(low=np.minimum(self.low, other.low), high=np.maximum(self.high, other.high))

    def divided(self, scale_I: Array) -> Range:
        return Range(low=self.low / scale_I, high=self.high / scale_I)

    @property
    def peaks(self) -> Array:
        peaks: Array = np.maximum(np.abs(self.low), np.abs(self.high))
        return peaks

    @property
    def ends(self) -> tuple[float, float]:
        """Of the whole tensor; zero is always inside."""
        return min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)


Ranges = Mapping[str, Range]  # by the name of a linear layer's input


class Session(Protocol):
    """A loaded model."""

    def run(self, feeds: Arrays) -> Mapping[str, Array]: ...


def calibrate(model: ir.Model, feeds: Iterable[Arrays], load: Callable[[ir.Model], Session]) -> dict[str, Range]:
    """Run a float32 graph on each feed in turn and measure what its linear layers are given.

    Two numbers a channel are all that is kept. Of onnxruntime's calibrators, the one for minimum and maximum gives a
    range a tensor, too coarse to balance; the others hold every tensor of every image until the last.
    Raises PassError without an image, and where a value is not finite.
    """
    measured = model.clone()
    values = {str(each.x.name): each.x for each in linear_layers(measured)}
    _make_outputs(measured.graph, values)
    session = load(measured)
    ranges: dict[str, Range] = {}
    for feed in feeds:
        found = session.run(feed)
        for name in values:
            new = Range(low=found[f"{name}_ReduceMin"], high=found[f"{name}_ReduceMax"])
            ranges[name] = ranges[name].merged(new) if name in ranges else new
    if not ranges:
        raise PassError("no calibration image was given: 8-bit ranges are measured on some dozens of the job's own.")
    wrong = [name for name, each in ranges.items() if not np.isfinite(each.ends).all()]
    if wrong:
        raise PassError(f"{wrong[0]} is not finite on the calibration images: it has no range to quantize.")
    return ranges


def balance(model: ir.Model, ranges: Ranges) -> dict[str, Range]:
    """Move outliers of what linear layers are given into their weights, in place; gives the ranges after it.

    Exact algebra: what gives channel i is divided by s_i, row i of every reader's weight is multiplied by it. Two can
    be divided: gain and bias of a norm, and the layer that a gate is multiplied with (SwiGLU), which loses nothing by
    it, since its columns have a step each in 8 bits.
    """
    layers = {each.product: each for each in linear_layers(model)}
    changed = _balance_norms(model, ranges, layers)
    return _balance_gated(model, changed, layers)


def _balance_norms(model: ir.Model, ranges: Ranges, layers: Mapping[ir.Node, Linear]) -> dict[str, Range]:
    """A norm that anything but linear layers reads stays as it is. Norms of the same gain and bias change together."""
    changed = dict(ranges)
    norms: dict[tuple[ir.Value, ...], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            norms[tuple(value for value in node.inputs[1:] if value is not None)].append(node)
    for affine, same in norms.items():
        found_by = [readers(norm.outputs[0], layers) for norm in same]
        found = [each for some in found_by for each in some]
        alone = all(len(each.weight.uses()) == 1 for each in found)
        if all(found_by) and alone and all(len(value.uses()) == len(same) for value in affine):
            scale_I = _scale(found, ranges)
            for value in affine:
                _multiply(value, 1 / scale_I)
            _take(found, scale_I, changed)
    return changed


def _balance_gated(model: ir.Model, ranges: Ranges, layers: Mapping[ir.Node, Linear]) -> dict[str, Range]:
    """gate(x) · (x @ W + b): a layer of whose numbers no others are made, nor of its weights' and bias's."""
    changed = dict(ranges)
    by_result = {each.result: each for each in layers.values() if not each.result.is_graph_output()}
    for node in model.graph:
        factors = [by_result[value] for value in node.inputs if value in by_result and len(value.uses()) == 1]
        found = readers(node.outputs[0], layers)
        if node.op_type != "Mul" or len(factors) != 1 or not found:
            continue
        given = [value for value in (factors[0].weight, factors[0].bias) if value is not None]
        if all(len(value.uses()) == 1 for value in (*given, *(each.weight for each in found))):
            scale_I = _scale(found, changed)
            for value in given:
                _multiply(value, 1 / scale_I)
            _take(found, scale_I, changed)
    return changed


def _take(found: Iterable[Linear], scale_I: Array, ranges: dict[str, Range]) -> None:
    """Layers are given channels that are divided by `scale_I`."""
    for each in found:
        _multiply(each.weight, scale_I[:, None])
        ranges[str(each.x.name)] = ranges[str(each.x.name)].divided(scale_I)


def _make_outputs(graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
    """The smallest and the largest number of every channel, in place of the graph's outputs."""
    graph.outputs.clear()
    for name, value in values.items():
        assert value.shape is not None
        axes = edit.integers(graph, range(len(value.shape) - 1))
        for kind in ("ReduceMin", "ReduceMax"):
            made = edit.node(kind, [value, axes], f"{name}_{kind}", value.dtype, keepdims=0)
            made.outputs[0].shape = ir.Shape(value.shape[-1:])
            graph.append(made)
            graph.outputs.append(made.outputs[0])


def _scale(found: Iterable[Linear], ranges: Ranges) -> Array:
    """SmoothQuant's s, of geometric mean 1. A channel that is never used must not be divided by nothing."""
    given = np.max([ranges[str(each.x.name)].peaks for each in found], 0)
    taken = np.max([np.abs(edit.array_of(each.weight)).max(1) for each in found], 0)
    given, taken = (np.maximum(each, each.max() * 1e-3).astype(np.float64) for each in (given, taken))
    scale = given**_MOVED / taken ** (1 - _MOVED)
    scale_I: Array = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return scale_I


def _multiply(value: ir.Value, factor: Array) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(edit.array_of(value) * factor), name=value.name)
