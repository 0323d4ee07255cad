"""ONNX Runtime's own operators that its form of a graph has, as ONNX's shape inference must know them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnx import defs
from onnx.defs import OpSchema

DOMAIN, VERSION = "com.microsoft", 1
# RotaryEmbedding: x (B, T, C), the position of its first token, tables (T or more, K/2); every K channels of a token
# are turned by half-layout pairs. MultiHeadAttention: softmax(scale · q @ kᵀ) @ v a head; q, k, v (B, T, A·K).
# DynamicQuantizeMatMul: x (…, I) in 8 bits, by its own range, @ codes (I, O), as float32 (…, O); zeros may be left out.
_OPERATORS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "RotaryEmbedding": ({"input": "T", "position_ids": "tensor(int64)", "cos_cache": "T", "sin_cache": "T"}, {}),
    "MultiHeadAttention": (
        {"query": "T", "key": "T", "value": "T"},
        {"num_heads": OpSchema.AttrType.INT, "scale": OpSchema.AttrType.FLOAT},
    ),
    "DynamicQuantizeMatMul": ({"A": "T", "B": "Q", "b_scale": "T", "b_zero_point": "Q", "bias": "T"}, {}),
}
_TYPES = [("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], ""), ("Q", ["tensor(int8)"], "")]


@contextmanager
def known() -> Iterator[None]:
    """Within the block, ONNX infers the shapes of these operators' results. Not for longer: PyTorch's exporter wants
    every operator's name in one domain only.
    """
    for name, (inputs, attributes) in _OPERATORS.items():
        schema = OpSchema(
            name,
            DOMAIN,
            VERSION,
            inputs=[_parameter(each, kind) for each, kind in inputs.items()],
            outputs=[OpSchema.FormalParameter("output", "T")],
            type_constraints=[each for each in _TYPES if each[0] in inputs.values()],
            attributes=[OpSchema.Attribute(each, kind, required=False) for each, kind in attributes.items()],
        )
        schema.set_type_and_shape_inference_function(_product if "B" in inputs else _like_first_input)
        defs.register_schema(schema)
    try:
        yield
    finally:
        for name in _OPERATORS:
            defs.deregister_schema(name, VERSION, DOMAIN)


def _parameter(name: str, kind: str) -> OpSchema.FormalParameter:
    optional = name in ("b_zero_point", "bias")
    option = OpSchema.FormalParameterOption.Optional if optional else OpSchema.FormalParameterOption.Single
    return OpSchema.FormalParameter(name, kind, param_option=option)


def _product(context: Any) -> None:
    x, weight = context.get_input_type(0), context.get_input_type(1)
    if x is not None and weight is not None:
        if x.tensor_type.HasField("shape") and weight.tensor_type.HasField("shape"):
            x.tensor_type.shape.dim[-1].CopyFrom(weight.tensor_type.shape.dim[-1])
        context.set_output_type(0, x)


def _like_first_input(context: Any) -> None:
    if (first := context.get_input_type(0)) is not None:
        context.set_output_type(0, first)
