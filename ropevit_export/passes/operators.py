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
_OPERATORS = {
    "RotaryEmbedding": ({"input": "T", "position_ids": "tensor(int64)", "cos_cache": "T", "sin_cache": "T"}, {}),
    "MultiHeadAttention": (
        {"query": "T", "key": "T", "value": "T"},
        {"num_heads": OpSchema.AttrType.INT, "scale": OpSchema.AttrType.FLOAT},
    ),
}
_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


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
            inputs=[OpSchema.FormalParameter(each, kind) for each, kind in inputs.items()],
            outputs=[OpSchema.FormalParameter("output", "T")],
            type_constraints=[("T", _TYPES, "")],
            attributes=[OpSchema.Attribute(each, kind, required=False) for each, kind in attributes.items()],
        )
        schema.set_type_and_shape_inference_function(_like_first_input)
        defs.register_schema(schema)
    try:
        yield
    finally:
        for name in _OPERATORS:
            defs.deregister_schema(name, VERSION, DOMAIN)


def _like_first_input(context: Any) -> None:
    if (first := context.get_input_type(0)) is not None:
        context.set_output_type(0, first)
