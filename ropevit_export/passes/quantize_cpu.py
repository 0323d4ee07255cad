"""8-bit products in the form that ONNX Runtime computes them in on a CPU; why these, `quantize.py` says.

Legend: I inputs · O outputs of a layer · B batch · T tokens · A heads · K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.attention import Attention, attentions
from ropevit_export.passes.codes import LARGEST, Near, step_and_shift, weight_codes
from ropevit_export.passes.linear import Linear, linear_layers
from ropevit_export.passes.ranges import Ranges

# uint8 codes of the same steps are int8 codes and this.
_MIDDLE = 128
# Below, 8-bit scores take as long as the Attention operator or longer: measured at 65, 197, 577 and 1025 tokens.
_FEWEST_TOKENS = 128
# Of float32 scores at a time: what a core's second cache keeps from the product to Softmax to the next product.
_SCORE_BYTES = 3 << 20


class QuantizeGemm(ir.passes.InPlacePass):
    """The same codes in the form that ONNX Runtime computes in 8 bits on a CPU: Q/DQ around a Gemm with an int32 bias.

    From Q/DQ around a MatMul with an Add it makes a Gemm between two reshapes, then finds no DQ beside the Gemm, and
    computes in float32, slower than without Q/DQ. Around a Gemm that has two axes from the start it makes one kernel
    (QGemm). Inputs are uint8, with a zero point in place of the shift.
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
        near, single = Near(graph, layer), ir.DataType.FLOAT
        weight_IO = edit.array_of(layer.weight)
        codes_IO, scale_O = weight_codes(weight_IO, "int8")
        step, shift = step_and_shift(self.ranges[str(layer.x.name)], "int8")
        bias_O = np.zeros(len(scale_O)) if layer.bias is None else edit.array_of(layer.bias).astype(np.float64)
        bias_scale_O = np.float32(step) * scale_O
        largest = 2**31 - 1
        bias_codes_O = np.clip(np.round(bias_O / bias_scale_O), -largest, largest).astype(np.int32)

        rows = edit.integers(graph, [-1, len(weight_IO)])
        x = near.put("Reshape", [layer.x, rows], "rows", single)
        steps = [
            edit.constant(graph, f"{layer.name}.input_scale", np.asarray(step, np.float32)),
            edit.constant(graph, f"zero_{_MIDDLE - shift}", np.asarray(_MIDDLE - shift, np.uint8)),
        ]
        x = near.put("QuantizeLinear", [x, *steps], "codes", ir.DataType.UINT8)
        x = near.put("DequantizeLinear", [x, *steps], "input", single)
        weight = near.decoded("weight", codes_IO, scale_O, single, axis=1)
        bias = near.decoded("bias", bias_codes_O, bias_scale_O, single, axis=0)
        y = near.put("Gemm", [x, weight, bias], "gemm", single)
        edit.rename_to(near.put("Reshape", [y, self._extents(graph, layer, near)], "result", single), layer.result)
        for node in (layer.add, layer.product):
            if node is not None:
                graph.remove(node, safe=True)
        edit.forget(graph, layer.weight)
        edit.forget(graph, layer.bias)

    @staticmethod
    def _extents(graph: ir.Graph, layer: Linear, near: Near) -> ir.Value:
        """What the rows go back to: constant, or computed where more than one extent is the input's."""
        extents = list(layer.result.shape or ())
        if extents and sum(not isinstance(each, int) for each in extents) <= 1:
            return edit.integers(graph, [each if isinstance(each, int) else -1 for each in extents])
        width = edit.integers(graph, [edit.array_of(layer.weight).shape[1]])
        before = near.put("Shape", [layer.x], "extents_before", ir.DataType.INT64, end=-1)
        return near.put("Concat", [before, width], "extents", ir.DataType.INT64, axis=0)


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
            step = np.float32((max(-low, high) or 1.0) / LARGEST["int8"])
            steps = [edit.constant(graph, f"{name}.{which}_scale", np.asarray(step)),
                     edit.constant(graph, f"zero_{zero.dtype}_{zero}", np.asarray(zero))]  # fmt: skip
            return put("QuantizeLinear", [x, *steps], f"{which}_codes", ir.DataType.from_numpy(zero.dtype)), steps

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
        parts = zip(
            grouped(q, "q", [0, 2, 1, 3]),
            grouped(k, "k", [0, 2, 3, 1]),
            grouped(attention.v, "v", [0, 2, 1, 3]),
            strict=True,
        )
        mixed = []
        for index, (some_q, some_k, some_v) in enumerate(parts):
            decoded = [put("DequantizeLinear", [some_q, *q_steps], f"q_{index}", single),
                       put("DequantizeLinear", [some_k, *k_steps], f"k_{index}", single)]  # fmt: skip
            scores = put("MatMul", decoded, f"scores_{index}", single)
            shares = put("Softmax", [scores], f"shares_{index}", single, axis=-1)
            mixed.append(put("MatMul", [shares, some_v], f"mixed_{index}", single))
        together = mixed[0] if count == 1 else put("Concat", mixed, "mixed", single, axis=1)
        edit.rename_to(put("Transpose", [together], "by_token", single, perm=[0, 2, 1, 3]), attention.result)
