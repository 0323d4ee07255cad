"""8-bit products in the form that ONNX Runtime computes them in on a CPU; why these, `quantize.py` says.

Legend: I inputs · O outputs of a layer · B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ropevit_export.formats import FORMATS
from ropevit_export.passes import edit
from ropevit_export.passes.attention import Attention, attentions, start_of_heads
from ropevit_export.passes.linear import Linear, linear_layers
from ropevit_export.passes.quantize.codes import LayerEditor, step_and_shift, weight_codes
from ropevit_export.passes.quantize.ranges import Range, Ranges

# uint8 codes of the same steps are int8 codes and this.
_MIDDLE = 128
# Gelu maps inputs below -4 to less than half a step of its results: to 1.3e-4 at most.
_GELU_ENDS = -4.0
# Below, 8-bit scores take as long as the Attention operator or longer: measured at 65, 197, 577 and 1025 tokens.
_FEWEST_TOKENS = 128
# Of float32 scores at a time: what a core's second cache keeps from the product to Softmax to the next product.
_SCORE_BYTES = 3 << 20


def split_heads(model: ir.Model, ranges: Ranges) -> dict[str, Range]:
    """One layer for q, one for k, one for v, in place, instead of one for all; gives the ranges after it.

    8-bit results have one step a layer, and in ONNX Runtime a slice is a copy. Engines want one layer, which reads its
    input once.
    """
    changed = dict(ranges)
    for layer in linear_layers(model):
        for name, columns in _split(model.graph, layer).items():
            if layer.result.name in ranges:
                changed[name] = ranges[str(layer.result.name)].part(columns)
    model.graph.sort()
    return changed


class QuantizeRows(ir.passes.InPlacePass):
    """The codes of `quantize.QuantizeLinear` where ONNX Runtime's CPU kernels compute in 8 bits, on rows: Q/DQ around

    - a convolution of one pixel, whose result has 8 bits too, where that costs little: Gelu and scores have 8-bit codes
      right behind them, and attention takes the mean of v. Its kernel (QLinearConv, channels last) writes each result
      once, where that of a Gemm adds up in memory: with its DQ it takes 0.64 to 0.88 of a Gemm's time.
    - a Gemm with an int32 bias (QGemm), which gives float32, for what is added to the tokens.

    Neither is what ONNX Runtime makes of Q/DQ around a MatMul with an Add: that is a Gemm between two reshapes, which
    then finds no DQ beside it and computes in float32. Inputs are uint8, with a zero point in place of the shift.
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
        editor, single = LayerEditor(graph, layer), ir.DataType.FLOAT
        weight_IO = edit.array_of(layer.weight)
        codes_IO, scale_O = weight_codes(weight_IO, "int8")
        step, shift = step_and_shift(self.ranges[str(layer.x.name)], "int8")
        bias_O = np.zeros(len(scale_O)) if layer.bias is None else edit.array_of(layer.bias).astype(np.float64)
        bias_scale_O = np.float32(step) * scale_O
        largest = 2**31 - 1
        bias_codes_O = np.clip(np.round(bias_O / bias_scale_O), -largest, largest).astype(np.int32)
        taken = [edit.constant(graph, f"{layer.x.name}.scale", np.asarray(step, np.float32)),
                 _zero(graph, _MIDDLE - shift)]  # fmt: skip
        result_quant = self._steps_of_result(graph, layer)

        rows = edit.integers(graph, [-1, len(weight_IO)] if result_quant is None else [1, -1, 1, len(weight_IO)])
        x = editor.put("Reshape", [layer.x, rows], "rows", single)
        x = editor.put("QuantizeLinear", [x, *taken], "codes", ir.DataType.UINT8)
        if result_quant is not None:
            x = editor.put("Transpose", [x], "channels_first", ir.DataType.UINT8, perm=[0, 3, 1, 2])
            codes_IO = codes_IO.T[:, :, None, None]  # (O, I, 1, 1)
        x = editor.put("DequantizeLinear", [x, *taken], "input", single)
        weight = editor.decoded("weight", codes_IO, scale_O, single, axis=1 if result_quant is None else 0)
        bias = editor.decoded("bias", bias_codes_O, bias_scale_O, single, axis=0)
        result, replaced = layer.result, [layer.product, *([layer.add] if layer.add is not None else [])]
        if result_quant is None:
            y = editor.put("Gemm", [x, weight, bias], "gemm", single)
            y = editor.put("Reshape", [y, _extents(graph, result, layer, editor)], "result", single)
        else:
            while (reshape := _only_reshape(result)) is not None:  # attention wants the codes of v as it reads them
                result = reshape.outputs[0]
                replaced.append(reshape)
            y = editor.put("Conv", [x, weight, bias], "conv", single, kernel_shape=[1, 1])
            y = editor.put("QuantizeLinear", [y, *result_quant], "result_codes", ir.DataType.UINT8)
            y = editor.put("Transpose", [y], "channels_last", ir.DataType.UINT8, perm=[0, 2, 3, 1])
            y = editor.put("Reshape", [y, _extents(graph, result, layer, editor)], "result_rows", ir.DataType.UINT8)
            y = editor.put("DequantizeLinear", [y, *result_quant], "result", single)
        edit.rename_to(y, result)
        for node in reversed(replaced):
            graph.remove(node, safe=True)
        edit.forget(graph, layer.weight)
        edit.forget(graph, layer.bias)

    def _steps_of_result(self, graph: ir.Graph, layer: Linear) -> list[ir.Value] | None:
        """Step and zero point of a result that may have 8 bits; None for another one."""
        kinds = _kinds_of_readers(layer.result)
        if not kinds or not kinds <= {"Gelu", "attention"} or layer.result.name not in self.ranges:
            return None
        low, high = self.ranges[str(layer.result.name)].ends
        if kinds == {"Gelu"}:
            low = max(low, _GELU_ENDS)
        step = np.float32((high - low) / 255 or 1.0)
        return [edit.constant(graph, f"{layer.name}.result_scale", np.asarray(step)), _zero(graph, round(-low / step))]


class QuantizeScores(ir.passes.InPlacePass):
    """Q/DQ on queries and keys for ONNX Runtime's CPU kernels, and attention a few heads at a time.

    8-bit scores alone win little, since all heads' scores pass through memory between the operators; in groups that
    fit the cache they take a quarter off attention (base at 384, where a group is two heads). Only where all tokens
    ask and their number is known. What is left is for `attention.FuseAttention`.
    """

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self.ranges = ranges

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [each for each in attentions(model) if self._pays(each)]
        for each in found:
            self._quantize(model.graph, each)
        if found:
            model.graph.sort()
        return ir.passes.PassResult(model, modified=bool(found))

    def _pays(self, attention: Attention) -> bool:
        q, k = attention.q, attention.k
        if q.name not in self.ranges or k.name not in self.ranges or q.shape is None or k.shape is None:
            return False
        tokens = q.shape[1]
        return isinstance(tokens, int) and tokens >= _FEWEST_TOKENS and k.shape[1] == tokens

    def _quantize(self, graph: ir.Graph, attention: Attention) -> None:
        assert attention.q.shape is not None
        batch, tokens, heads, _ = attention.q.shape
        assert isinstance(tokens, int)
        assert isinstance(heads, int)
        name, single = attention.softmax.name, ir.DataType.FLOAT

        def put(kind: str, inputs: Sequence[ir.Value], which: str, dtype: ir.DataType, **more: Any) -> ir.Value:
            made = edit.node(kind, inputs, f"{name}_{which}", dtype, **more)
            graph.append(made)
            return made.outputs[0]

        def coded(x: ir.Value, which: str, zero: np.generic) -> tuple[ir.Value, list[ir.Value]]:
            """Codes, and what they are decoded with: step and zero point."""
            low, high = self.ranges[str(x.name)].ends
            step = np.float32((max(-low, high) or 1.0) / FORMATS["int8"].largest)
            steps = [edit.constant(graph, f"{name}.{which}_scale", np.asarray(step)),
                     edit.constant(graph, f"zero_{zero.dtype}_{zero}", np.asarray(zero))]  # fmt: skip
            kind = ir.DataType.from_numpy(zero.dtype)
            # Before the reshape behind a rotation: ONNX Runtime would put them there as uint8, then decode them again.
            rows, *shape = _inputs_of_producer(x, "Reshape") or [x]
            codes = put("QuantizeLinear", [rows, *steps], f"{which}_codes", kind)
            return put("Reshape", [codes, *shape], f"{which}_heads", kind) if shape else codes, steps

        def grouped(x: ir.Value, which: str, order: Sequence[int]) -> Sequence[ir.Value]:
            """(B, T, A, K) with heads first, a value a group."""
            assert x.dtype is not None
            turned = put("Transpose", [x], f"{which}_by_head", x.dtype, perm=order)
            if len(groups) == 1:
                return [turned]
            split = ir.node("Split", [turned, edit.integers(graph, groups)], {"axis": 1}, num_outputs=len(groups))
            split.name = f"{name}_{which}_groups"
            graph.append(split)
            for index, value in enumerate(split.outputs):
                value.name, value.dtype = f"{split.name}_{index}", x.dtype
            return split.outputs

        per_head = tokens * tokens * 4 * (batch if isinstance(batch, int) else 1)
        count = min(heads, -(-heads * per_head // _SCORE_BYTES))
        groups = [len(each) for each in np.array_split(np.arange(heads), count)]
        q, q_steps = coded(attention.q, "q", np.uint8(_MIDDLE))  # the CPU kernel's left side has no sign
        k, k_steps = coded(attention.k, "k", np.int8(0))
        v, *v_steps = _inputs_of_producer(attention.v, "DequantizeLinear") or [attention.v]
        parts = zip(
            grouped(q, "q", [0, 2, 1, 3]),
            grouped(k, "k", [0, 2, 3, 1]),
            grouped(v, "v", [0, 2, 1, 3]),
            strict=True,
        )
        mixed = []
        for index, (some_q, some_k, some_v) in enumerate(parts):
            decoded = [put("DequantizeLinear", [some_q, *q_steps], f"q_{index}", single),
                       put("DequantizeLinear", [some_k, *k_steps], f"k_{index}", single)]  # fmt: skip
            scores = put("MatMul", decoded, f"scores_{index}", single)
            shares = put("Softmax", [scores], f"shares_{index}", single, axis=-1)
            values = put("DequantizeLinear", [some_v, *v_steps], f"v_{index}", single) if v_steps else some_v
            mixed.append(put("MatMul", [shares, values], f"mixed_{index}", single))
        together = mixed[0] if count == 1 else put("Concat", mixed, "mixed", single, axis=1)
        edit.rename_to(put("Transpose", [together], "by_token", single, perm=[0, 2, 1, 3]), attention.result)


def _zero(graph: ir.Graph, code: int) -> ir.Value:
    """A uint8 zero point."""
    return edit.constant(graph, f"zero_{code}", np.asarray(code, np.uint8))


def _inputs_of_producer(value: ir.Value, kind: str) -> list[ir.Value]:
    """Of the node that a value comes out of; none of a node of another kind."""
    node = edit.producer(value, kind)
    return [] if node is None else [each for each in node.inputs if each is not None]


def _extents(graph: ir.Graph, result: ir.Value, layer: Linear, editor: LayerEditor) -> ir.Value:
    """What rows go back to: constant, or computed where more than one extent is the input's."""
    extents = list(result.shape or ())
    if extents and sum(not isinstance(each, int) for each in extents) <= 1:
        return edit.integers(graph, [each if isinstance(each, int) else -1 for each in extents])
    assert result is layer.result
    width = edit.integers(graph, [edit.array_of(layer.weight).shape[1]])
    before = editor.put("Shape", [layer.x], "extents_before", ir.DataType.INT64, end=-1)
    return editor.put("Concat", [before, width], "extents", ir.DataType.INT64, axis=0)


def _only_reshape(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if it is a Reshape to a shape with at most one extent open."""
    reshape = edit.only_user(value, "Reshape")
    if reshape is None or value.is_graph_output():
        return None
    shape = reshape.outputs[0].shape
    return reshape if shape is not None and sum(not isinstance(each, int) for each in shape) <= 1 else None


def _kinds_of_readers(value: ir.Value) -> set[str]:
    """What a value goes to, through reshapes and rotations: operators, or "attention" for one of its products."""
    if value.is_graph_output():
        return {"output"}
    kinds: set[str] = set()
    for user, index in value.uses():
        if user.op_type in ("Reshape", "RotaryEmbedding") and index == 0:
            kinds |= _kinds_of_readers(user.outputs[0])
        elif user.op_type == "Transpose" and {each.op_type for each, _ in user.outputs[0].uses()} == {"MatMul"}:
            kinds.add("attention")
        else:
            kinds.add(user.op_type)
    return kinds


def _split(graph: ir.Graph, layer: Linear) -> dict[str, slice]:
    """Put a layer for each slice of heads in the place of one for all; the new results' names and their columns.

    None where something else reads the layer, or where two extents of a slice are open.
    """
    reshapes, heads = [], layer.result
    while (reshape := _only_reshape(heads)) is not None:
        reshapes.append(reshape)
        heads = reshape.outputs[0]
    columns = {user: _columns(user) for user, _ in heads.uses()}
    found = {user: each for user, each in columns.items() if each is not None}
    if not found or len(found) < len(columns) or heads.is_graph_output():
        return {}
    made = {}
    for cut, taken in found.items():
        result = _part(graph, layer, f"{layer.name}.{start_of_heads(cut)}", taken)
        old = cut.outputs[0]
        target = edit.integers(graph, [extent if isinstance(extent, int) else -1 for extent in old.shape or ()])
        last = edit.node("Reshape", [result, target], f"{result.name}_heads", old.dtype)
        graph.append(last)
        edit.rename_to(last.outputs[0], old)
        made[str(result.name)] = taken
    for node in (*found, *reversed(reshapes), *([layer.add] if layer.add is not None else []), layer.product):
        graph.remove(node, safe=True)
    edit.forget(graph, layer.weight)
    edit.forget(graph, layer.bias)
    return made


def _part(graph: ir.Graph, layer: Linear, name: str, columns: slice) -> ir.Value:
    """The result of a layer that has some of another one's columns."""
    weight = edit.constant(graph, f"{name}.weight", edit.array_of(layer.weight)[:, columns])
    nodes = [edit.node("MatMul", [layer.x, weight], name, layer.x.dtype)]
    if layer.bias is not None:
        bias = edit.constant(graph, f"{name}.bias", edit.array_of(layer.bias)[columns])
        nodes.append(edit.node("Add", [nodes[0].outputs[0], bias], f"{name}_biased", layer.x.dtype))
    for node in nodes:
        graph.append(node)
    result = nodes[-1].outputs[0]
    result.shape = ir.Shape([*list(layer.result.shape or ())[:-1], columns.stop - columns.start])
    return result


def _columns(node: ir.Node) -> slice | None:
    """Which of A·K columns a Slice of (B, T, A, K) by heads takes; None for another node, or with two extents open."""
    start, shape = start_of_heads(node), node.outputs[0].shape
    if start is None or shape is None or len(shape) != 4 or sum(not isinstance(each, int) for each in shape) > 1:
        return None
    heads, width = shape[2], shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    return slice(start * width, (start + heads) * width)
