"""Number formats by everybody's names, a row a format. Names only: nothing here imports a library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """One number format.

    name      as `--precision`, manifests and the census have it
    numpy     NumPy's (with ml_dtypes), torch's, and that of a manifest's tensors
    onnx      of `onnx_ir.DataType`
    tensorrt  of `tensorrt.DataType`
    report    as layer reports spell it (`backends.layer_report`)
    openvino  of `openvino.Type`
    largest   the largest finite value, whose negative is a value too, but for those without a sign
    """

    name: str
    numpy: str
    onnx: str
    tensorrt: str
    report: str
    openvino: str
    bytes: int
    largest: float


# fmt: off
_ROWS = (
    #            name     numpy            onnx            tensorrt  report      openvino   bytes largest
    NumberFormat("fp32",  "float32",       "FLOAT",        "FLOAT",  "Float",    "f32",     4,     2.0**128 - 2.0**104),
    NumberFormat("fp16",  "float16",       "FLOAT16",      "HALF",   "Half",     "f16",     2,     65504),
    NumberFormat("bf16",  "bfloat16",      "BFLOAT16",     "BF16",   "BFloat16", "bf16",    2,     2.0**128 - 2.0**120),
    NumberFormat("int8",  "int8",          "INT8",         "INT8",   "Int8",     "i8",      1,     127),
    NumberFormat("fp8",   "float8_e4m3fn", "FLOAT8E4M3FN", "FP8",    "FP8",      "f8e4m3",  1,     448),
    NumberFormat("uint8", "uint8",         "UINT8",        "UINT8",  "UInt8",    "u8",      1,     255),
    NumberFormat("int32", "int32",         "INT32",        "INT32",  "Int32",    "i32",     4,     2**31 - 1),
    NumberFormat("int64", "int64",         "INT64",        "INT64",  "Int64",    "i64",     8,     2**63 - 1),
    NumberFormat("bool",  "bool",          "BOOL",         "BOOL",   "Bool",     "boolean", 1,     1),
)
# fmt: on
FORMATS = {each.name: each for each in _ROWS}
SIXTEEN_BITS: tuple[Literal["fp16", "bf16"], ...] = ("fp16", "bf16")
EIGHT_BITS: tuple[Literal["int8", "fp8"], ...] = ("int8", "fp8")
# What a graph's products can be asked for in (`values.Precision`), and what its inputs and outputs can
# (`values.IoPrecision`).
IO_PRECISIONS = ("fp32", *SIXTEEN_BITS)
PRECISIONS = (*IO_PRECISIONS, *EIGHT_BITS)
