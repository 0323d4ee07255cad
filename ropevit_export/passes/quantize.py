"""8-bit linear layers: ranges measured on images, outliers moved into weights, Q/DQ written where runtimes use it.

What is quantized: products with a constant weight (qkv, proj, fc1, fc2, Swin's reductions), weights per output channel.
What is not: the products inside attention (TensorRT-RTX's fused attention takes float16 only, and on a CPU quantizing
queries, keys and probabilities costs more than the 8-bit products save), Softmax, LayerNorm, the rotation, the patch
convolution and the layer that gives the output.

Placement is written here and not left to onnxruntime.quantization or modelopt, whose default recipes were measured
against this one (`scripts/bench_quantize`): they quantize residual sums and attention too, leave Gelu's one-sided
outputs half of the 8 bits, and know nothing of outliers. Ranges are minimum and maximum, which is what both libraries
take by default: clipping (percentile, entropy, least squares) loses the few large channels that a vision transformer
lives on, and made features of a trained model worse by a factor of 5.

Legend: I inputs · O outputs of a linear layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ropevit_export.errors import PassError

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays, FloatArray

Coding = Literal["int8", "fp8"]

# How far an outlier moves from activations (1) into weights (0). 0.5 is SmoothQuant's (Xiao et al., arXiv:2211.10438).
_MOVED = 0.5
# A range is one-sided where its short side is less than this of its long one: Gelu ends at -0.17.
_ONE_SIDED = 0.5
_LARGEST = {"int8": 127.0, "fp8": 448.0}
_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Smallest and largest value of every channel of a tensor, its last axis, over all calibration images."""

    low_I: FloatArray
    high_I: FloatArray

    def merged(self, other: Range) -> Range:
        return Range(low_I=np.minimum(self.low_I, other.low_I), high_I=np.maximum(self.high_I, other.high_I))

    def divided(self, scale_I: FloatArray) -> Range:
        return Range(low_I=self.low_I / scale_I, high_I=self.high_I / scale_I)

    @property
    def peak_I(self) -> FloatArray:
        return np.maximum(np.abs(self.low_I), np.abs(self.high_I))

    @property
    def ends(self) -> tuple[float, float]:
        """Of the whole tensor; zero is always inside."""
        return min(float(self.low_I.min()), 0.0), max(float(self.high_I.max()), 0.0)


Ranges = Mapping[str, Range]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """x @ weight_IO + bias_O in a graph: a MatMul and, where there is one, the Add behind it; or one Gemm."""

    product: ir.Node
    add: ir.Node | None

    @property
    def x(self) -> ir.Value:
        return _value(self.product.inputs[0])

    @property
    def weight(self) -> ir.Value:
        return _value(self.product.inputs[1])

    @property
    def bias(self) -> ir.Value | None:
        if self.add is None:
            return self.product.inputs[2] if len(self.product.inputs) > 2 else None
        return next(value for value in self.add.inputs if value is not None and value.const_value is not None)

    @property
    def result(self) -> ir.Value:
        return (self.add or self.product).outputs[0]


def linear_layers(model: ir.Model) -> list[Linear]:
    """In order, but for the one whose result is an output, which is worth its float."""
    outputs = set(model.graph.outputs)
    found = [_linear(node) for node in model.graph if _is_linear(node)]
    return [each for each in found if outputs.isdisjoint([each.result])]


def calibrate(model: ir.Model, feeds: Iterable[Arrays]) -> dict[str, Range]:
    """Run a float32 graph in ONNX Runtime and measure what every linear layer is given, by the value's name.

    One feed at a time; what is kept is one number a channel. onnxruntime's own calibrators keep every image's tensors
    until all are seen, 150 MB an image for a base model. Raises PassError where there is no image.
    """
    import onnxruntime

    measured = model.clone()
    graph = measured.graph
    names = list(dict.fromkeys(str(each.x.name) for each in linear_layers(measured)))
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            graph.append(_extreme(graph, kind, values[name]))
            graph.outputs.append(graph[-1].outputs[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_serialized(measured), options, providers=["CPUExecutionProvider"])
    ranges: dict[str, Range] = {}
    for feed in feeds:
        found = session.run(None, dict(feed))
        for name, low, high in zip(names, found[::2], found[1::2], strict=True):
            new = Range(low_I=low, high_I=high)
            ranges[name] = ranges[name].merged(new) if name in ranges else new
    if not ranges:
        raise PassError("no calibration image: 8-bit ranges are measured on images, some dozens of the real job's.")
    bad = [name for name, each in ranges.items() if not np.isfinite(each.ends).all()]
    if bad:
        raise PassError(f"{bad[0]} is not finite on the calibration images: there is no range to quantize.")
    return ranges


def balance(model: ir.Model, ranges: Ranges) -> dict[str, Range]:
    """Move outliers of LayerNorm's outputs into the weights that read them; gives the ranges after it.

    Exact algebra: gain and bias of channel i divided by s, row i of every reader's weight multiplied by it. A norm with
    a reader that is no linear layer stays as it is. In place.
    """
    layers = {each.product: each for each in linear_layers(model)}
    changed = dict(ranges)
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        readers = _readers(norm.outputs[0], layers)
        affine = [value for value in norm.inputs[1:] if value is not None]
        if not readers or any(len(value.uses()) > 1 for value in [*affine, *(each.weight for each in readers)]):
            continue
        given = [ranges[str(each.x.name)].peak_I for each in readers]
        taken = [np.abs(_array(each.weight)).max(1) for each in readers]
        scale_I = _scale(np.max(given, 0), np.max(taken, 0))
        for value in affine:
            _replace(value, _array(value) / scale_I)
        for each in readers:
            _replace(each.weight, _array(each.weight) * scale_I[:, None])
            changed[str(each.x.name)] = ranges[str(each.x.name)].divided(scale_I)
    return changed


class QuantizeLinear(ir.passes.InPlacePass):
    """Q/DQ before both inputs of every linear layer that has a range; the layer's name tells which.

    Zero points are 0 and weights are symmetric, as TensorRT wants them. A one-sided input, Gelu's, is shifted to the
    middle of the 8 bits by a subtraction, and the shift times the weight goes into the bias; the shift is a whole
    number of steps, so that 0 stays exact: most of Gelu's outputs are near it. Scales have the graph's own float type.
    """

    def __init__(self, ranges: Ranges, coding: Coding) -> None:
        super().__init__()
        self.ranges, self.coding = ranges, coding

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in linear_layers(model) if each.x.name in self.ranges]
        for each in found:
            self._quantize(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))

    def _quantize(self, graph: ir.Graph, layer: Linear) -> None:
        name, dtype = _stem(layer.weight), layer.weight.dtype
        kind = ml_dtypes.float8_e4m3fn if self.coding == "fp8" else np.int8
        weight_IO = _array(layer.weight)
        codes_IO, scale_O = weight_codes(weight_IO, self.coding, half=dtype == ir.DataType.FLOAT16)
        step, shift = step_and_shift(self.ranges[str(layer.x.name)], self.coding)
        if dtype == ir.DataType.FLOAT16:
            step, shift = float(np.float16(step)), shift
        centre = shift * step
        x = layer.x
        if shift:
            x = _insert(graph, layer.product, "Sub", [x, _constant(graph, f"{name}.centre", centre, dtype)])
            _shift_bias(graph, layer, centre * weight_IO.sum(0), name)
        scale = _constant(graph, f"{name}.input_scale", step, dtype)
        zero = _initializer(graph, f"zero_{self.coding}", np.zeros((), kind))
        x = _insert(graph, layer.product, "QuantizeLinear", [x, scale, zero], _TYPES[self.coding])
        x = _insert(graph, layer.product, "DequantizeLinear", [x, scale, zero], dtype)
        codes = _initializer(graph, f"{name}.codes", codes_IO)
        scales = _initializer(graph, f"{name}.scale", scale_O)
        zeros = _initializer(graph, f"zeros_{self.coding}_{len(scale_O)}", np.zeros(len(scale_O), kind))
        weight = _insert(graph, layer.product, "DequantizeLinear", [codes, scales, zeros], dtype, axis=1)
        old = layer.weight
        layer.product.replace_input_with(0, x)
        layer.product.replace_input_with(1, weight)
        _drop(graph, old)


class QuantizeGemm(ir.passes.InPlacePass):
    """The same numbers in the form that ONNX Runtime computes in 8 bits: a Gemm of two axes with an int32 bias.

    It makes one kernel of Q/DQ around a Gemm (QGemm), but none around a MatMul with an Add: it first turns those into a
    Gemm between reshapes, and then finds no DQ beside it and computes in float32, slower than before. Inputs are uint8
    with a zero point, which takes the place of the shift. Two reshapes cost nothing there.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.ranges = ranges

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in linear_layers(model) if each.x.name in self.ranges]
        for each in found:
            self._quantize(model.graph, each)
        return ir.passes.PassResult(model, modified=bool(found))

    def _quantize(self, graph: ir.Graph, layer: Linear) -> None:
        name, product = _stem(layer.weight), layer.product
        weight_IO = _array(layer.weight)
        bias_O = np.zeros(weight_IO.shape[1], np.float32) if layer.bias is None else _array(layer.bias)
        codes_IO, scale_O = weight_codes(weight_IO, "int8")
        step, shift = step_and_shift(self.ranges[str(layer.x.name)], "int8")
        bias_scale_O = np.float32(step) * scale_O
        bias_codes_O = np.round(bias_O.astype(np.float64) / bias_scale_O)
        bias_codes_O = np.clip(bias_codes_O, -(2**31 - 1), 2**31 - 1).astype(np.int32)

        flat = _constant_list(graph, f"rows_of_{weight_IO.shape[0]}", [-1, weight_IO.shape[0]])
        shape = _result_shape(graph, layer)
        x = _insert(graph, product, "Reshape", [layer.x, flat])
        scale = _initializer(graph, f"{name}.input_scale", np.asarray(step, np.float32))
        zero = _initializer(graph, f"zero_{128 - shift}", np.asarray(128 - shift, np.uint8))
        x = _insert(graph, product, "QuantizeLinear", [x, scale, zero], ir.DataType.UINT8)
        x = _insert(graph, product, "DequantizeLinear", [x, scale, zero], ir.DataType.FLOAT)
        parts = []
        for what, codes, scales, axis in (("weight", codes_IO, scale_O, 1), ("bias", bias_codes_O, bias_scale_O, 0)):
            inputs = [_initializer(graph, f"{name}.{what}_codes", codes), _initializer(graph, f"{name}.{what}_scale", scales),
                      _initializer(graph, f"zeros_{codes.dtype}_{len(scales)}", np.zeros(len(scales), codes.dtype))]
            parts.append(_insert(graph, product, "DequantizeLinear", inputs, ir.DataType.FLOAT, axis=axis))
        y = _insert(graph, product, "Gemm", [x, *parts], ir.DataType.FLOAT)
        y = _insert(graph, product, "Reshape", [y, shape], ir.DataType.FLOAT)
        old, result = [layer.weight, layer.bias], layer.result
        y.shape = result.shape
        result.replace_all_uses_with(y)
        for node in (layer.add, product):
            if node is not None:
                graph.remove(node, safe=True)
        for value in old:
            if value is not None:
                _drop(graph, value)


def step_and_shift(given: Range, coding: Coding) -> tuple[float, int]:
    """The value of one step, and where the middle lies in steps: 0 unless an int8 range is one-sided."""
    low, high = given.ends
    if coding == "int8" and min(-low, high) < _ONE_SIDED * max(-low, high):
        step = (high - low) / (2 * _LARGEST[coding] - 1)  # one code is lost to rounding the shift
        return step, round((low + high) / 2 / step)
    return (max(-low, high) or 1.0) / _LARGEST[coding], 0


def weight_codes(weight_IO: FloatArray, coding: Coding, *, half: bool = False) -> tuple[Array, Array]:
    """Codes and one scale an output channel. `half`: scales are float16, and the codes follow their rounding, which
    is coarse for the small weights that LayerScale leaves.
    """
    largest = _LARGEST[coding]
    peak_O = np.abs(weight_IO).max(0).astype(np.float64)
    scale_O = np.maximum(peak_O, peak_O.max() * 1e-6 or 1.0) / largest
    if half:
        rounded = scale_O.astype(np.float16)
        scale_O = np.where(rounded < scale_O, np.nextafter(rounded, np.float16(np.inf)), rounded)
    else:
        scale_O = scale_O.astype(np.float32)
    units_IO = np.clip(weight_IO / scale_O.astype(np.float64), -largest, largest)
    return (np.round(units_IO).astype(np.int8) if coding == "int8" else units_IO.astype(ml_dtypes.float8_e4m3fn)), scale_O


def _is_linear(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return all(plain.get(name) == attribute.value for name, attribute in node.attributes.items())


def _linear(product: ir.Node) -> Linear:
    users = [node for node, _ in product.outputs[0].uses()]
    if product.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        constants = [value for value in users[0].inputs if value is not None and value.const_value is not None]
        width = _value(product.inputs[1]).const_value.shape[1]  # type: ignore[union-attr]
        if len(constants) == 1 and tuple(constants[0].const_value.shape) == (width,):  # type: ignore[union-attr]
            return Linear(product=product, add=users[0])
    return Linear(product=product, add=None)


def _readers(value: ir.Value, layers: Mapping[ir.Node, Linear]) -> list[Linear] | None:
    """The linear layers that read it, through nodes that leave every channel in its place; None if others do too."""
    reached, waiting, found = {value}, [value], []
    while waiting:
        current = waiting.pop()
        if current.is_graph_output():
            return None
        for node, index in current.uses():
            if node in layers and index == 0:
                found.append(layers[node])
            elif _keeps_channels(node, current):
                new = [output for output in node.outputs if output not in reached]
                reached.update(new)
                waiting.extend(new)
            else:
                return None
    joined = {each for output in reached for each in (output.producer() or value.producer()).inputs}  # type: ignore[union-attr]
    concats = [output.producer() for output in reached if _kind(output) == "Concat"]
    whole = all(each in reached for node in concats if node is not None for each in node.inputs)
    return found if whole and joined else None


def _keeps_channels(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type not in ("Slice", "Reshape", "Transpose", "Concat"):
        return False
    before, after = value.shape, node.outputs[0].shape
    if before is None or after is None or before[-1] != after[-1]:
        return False
    if node.op_type == "Transpose":
        return list(node.attributes["perm"].as_ints())[-1] == len(before) - 1
    return node.op_type != "Reshape" or len(before) > 0


def _scale(given_I: FloatArray, taken_I: FloatArray) -> FloatArray:
    """SmoothQuant's s, of geometric mean 1: a channel that nothing uses keeps a sane size."""
    given, taken = (np.maximum(each, each.max() * 1e-3).astype(np.float64) for each in (given_I, taken_I))
    scale = given**_MOVED / taken ** (1 - _MOVED)
    return (scale / np.exp(np.log(scale).mean())).astype(np.float32)


def _shift_bias(graph: ir.Graph, layer: Linear, added_O: FloatArray, name: str) -> None:
    bias, dtype = layer.bias, layer.weight.dtype
    total = added_O + (0 if bias is None else _array(bias).astype(np.float64))
    value = _initializer(graph, f"{name}.shifted_bias", total.astype(np.float16 if dtype == ir.DataType.FLOAT16 else np.float32))
    if bias is not None:
        node = layer.add or layer.product
        node.replace_input_with(list(node.inputs).index(bias), value)
        _drop(graph, bias)
        return
    add = ir.node("Add", [layer.product.outputs[0], value], name=f"{name}_shift")
    _typed(add, dtype, layer.product.outputs[0].shape, f"{name}_shifted")
    layer.product.outputs[0].replace_all_uses_with(add.outputs[0])
    add.replace_input_with(0, layer.product.outputs[0])
    graph.insert_after(layer.product, add)


def _result_shape(graph: ir.Graph, layer: Linear) -> ir.Value:
    """What the product's rows go back to: a constant, or computed where two extents are the input's."""
    extents = list(layer.result.shape or ())
    unknown = [index for index, extent in enumerate(extents) if not isinstance(extent, int)]
    if extents and len(unknown) <= 1:
        target = [extent if isinstance(extent, int) else -1 for extent in extents]
        return _constant_list(graph, "as_" + "_".join(map(str, target)).replace("-", "m"), target)
    width = _value(layer.weight).const_value.shape[1]  # type: ignore[union-attr]
    rows = _insert(graph, layer.product, "Shape", [layer.x], ir.DataType.INT64, end=-1)
    last = _constant_list(graph, f"width_{width}", [int(width)])
    return _insert(graph, layer.product, "Concat", [rows, last], ir.DataType.INT64, axis=0)


def _extreme(graph: ir.Graph, kind: str, value: ir.Value) -> ir.Node:
    axes = _constant_list(graph, f"axes_{len(value.shape or ())}", list(range(len(value.shape or ()) - 1)))
    node = ir.node(kind, [value, axes], attributes={"keepdims": 0}, name=f"{kind}_{value.name}")
    width = None if value.shape is None else value.shape[-1]
    _typed(node, ir.DataType.FLOAT, ir.Shape([width]), f"{value.name}_{kind}")
    return node


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value],
    dtype: ir.DataType | None = None,
    **attributes: int,
) -> ir.Value:
    """A node's output; where `dtype` is left out, the type is the first input's."""
    node = ir.node(kind, inputs, attributes=attributes)
    first = inputs[0]
    stem = f"{before.name}_{kind}_{len(graph)}"
    _typed(node, dtype or first.dtype, first.shape if kind not in ("Reshape", "Gemm", "Shape", "Concat") else None, stem)
    node.name = stem
    graph.insert_before(before, node)
    return node.outputs[0]


def _typed(node: ir.Node, dtype: ir.DataType | None, shape: ir.Shape | None, name: str) -> None:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name, dtype, shape


def _constant(graph: ir.Graph, name: str, number: float, dtype: ir.DataType | None) -> ir.Value:
    return _initializer(graph, name, np.asarray(number, np.float16 if dtype == ir.DataType.FLOAT16 else np.float32))


def _constant_list(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    return _initializer(graph, name, np.array(numbers, np.int64))


def _initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """By name: what several layers share is there once."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def _replace(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array.astype(np.float32)), name=value.name)


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    if not value.uses() and value.name in graph.initializers:
        del graph.initializers[value.name]


def _array(value: ir.Value) -> FloatArray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _value(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _kind(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _stem(weight: ir.Value) -> str:
    return str(weight.name).removesuffix(".weight")


def _serialized(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data
