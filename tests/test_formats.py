"""The one table of number formats, against the libraries whose names it holds."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from ropevit_export.backends import layer_report
from ropevit_export.formats import EIGHT_BITS, FORMATS, IO_PRECISIONS, PRECISIONS, SIXTEEN_BITS, NumberFormat
from ropevit_export.inspect import kernels
from ropevit_export.values import DTYPES, IoPrecision, Precision

ALL = pytest.mark.parametrize("each", FORMATS.values(), ids=FORMATS)


@ALL
def test_numpy_and_onnx_know_every_format_by_its_name_and_size(each: NumberFormat) -> None:
    dtype = np.dtype(each.numpy)
    assert dtype == ir.DataType[each.onnx].numpy()
    assert dtype.itemsize == each.bytes
    if dtype.kind == "b":
        assert each.largest == np.array(True).astype(int)
    else:
        assert each.largest == (np.iinfo(dtype) if dtype.kind in "iu" else ml_dtypes.finfo(dtype)).max


@ALL
def test_runtimes_know_every_format_by_its_name(each: NumberFormat) -> None:
    openvino = pytest.importorskip("openvino")
    theirs = getattr(openvino.Type, each.openvino)
    assert (theirs.get_type_name(), theirs.get_size()) == (each.openvino, each.bytes)
    trt = pytest.importorskip("tensorrt_rtx")
    assert getattr(trt.DataType, each.tensorrt).itemsize == each.bytes


def test_no_two_formats_share_a_name() -> None:
    for name in ("name", "numpy", "onnx", "tensorrt", "report", "openvino"):
        assert name in {field.name for field in fields(NumberFormat)}
        assert len({getattr(each, name) for each in FORMATS.values()}) == len(FORMATS)


def test_what_can_be_asked_for_is_in_the_table() -> None:
    assert get_args(Precision) == PRECISIONS
    assert get_args(IoPrecision) == IO_PRECISIONS == tuple(DTYPES)
    assert [FORMATS[name].bytes for name in (*SIXTEEN_BITS, *EIGHT_BITS)] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("Row major linear UINT8 format", "UInt8"),
        ("Row major linear INT8 format", "Int8"),
        ("Row major linear BF16 format", "BFloat16"),
        ("Row major linear Int64 format", "Int64"),
        ("Half", "Half"),
        ("Float", "Float"),
    ],
)
def test_a_description_of_a_layer_report_is_one_format(said: str, short: str) -> None:
    tensor = layer_report._inspected_tensor({"Name": "t", "Dimensions": [2, 3], "Format/Datatype": said})
    assert tensor["dtype"] == short
    (kernel,) = kernels.of_layers(
        [{"name": "k", "type": "gemm", "inputs": [tensor], "constants": [], "outputs": [], "onnx_nodes": []}]
    )
    assert FORMATS[kernel.inputs[0].format].report == short
    assert kernel.inputs[0].bytes == 6 * FORMATS[kernel.inputs[0].format].bytes
