"""What runs in which format, counted from files that were made wrong on purpose too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ropevit_export import passes
from ropevit_export.bundle import onnx_file
from ropevit_export.errors import BackendError
from ropevit_export.inspect import census
from ropevit_export.passes.precision import POLICIES, Policy
from ropevit_export.trace.export import trace, trace_dynamic
from ropevit_export.values import Precision
from tests.conftest import Case

Make = Callable[..., Case]


@pytest.fixture
def written(case: Make, tmp_path: Path) -> Callable[[Precision], Path]:
    each = case("rope_mixed_deit_small", "64")

    def write(precision: Precision) -> Path:
        tables = each.tables
        graph = passes.run(trace(each.spec, each.sized, tables, each.io()), precision)
        path = tmp_path / f"{precision}.onnx"
        onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), {"model": "test"})
        return path

    return write


# patches; in the first block qkv, scores, values, projection and two of the MLP; in the last the query apart; the head
PRODUCTS = 1 + 6 + 7 + 1


@pytest.mark.parametrize(("precision", "kept"), [("fp32", 0), ("fp16", 0), ("bf16", 2)])
def test_products_run_in_what_was_asked_but_for_what_the_policy_keeps(
    written: Callable[[Precision], Path], precision: Precision, kept: int
) -> None:
    found, wanted = census.of_graph(written(precision), precision)
    found.require("model", precision)
    assert found.counts[precision].products == PRODUCTS - kept
    assert sum(count.products for count in found.counts.values()) == PRODUCTS == len(wanted)
    assert list(wanted.values()).count({"fp32"}) == (PRODUCTS if precision == "fp32" else kept)


@pytest.mark.parametrize(("precision", "kept"), [("fp16", 0), ("bf16", 2)])
def test_what_an_embedding_is_resized_by_is_float32_and_no_fault(
    case: Make, precision: Precision, kept: int, tmp_path: Path
) -> None:
    """Matrices made from the size alone; what they give meets the image rounded."""
    each = case("rope_mixed_ape_deit_small", "64")
    io = dataclasses.replace(each.io(), rope="dynamic")
    graph = passes.run(trace_dynamic(each.spec, each.weights, each.factors(each.resolution), io), precision)
    path = tmp_path / "model.onnx"
    onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), {"model": "test"})
    found, wanted = census.of_graph(path, precision)
    found.require("model", precision)
    assert found.counts[precision].products == PRODUCTS - kept
    assert found.counts["fp32"].products == list(wanted.values()).count({"fp32"}) > kept


@pytest.mark.parametrize(
    ("module", "kept"), [("blocks.0", 4), ("blocks.0.mlp", 2), ("blocks.0.mlp.fc1", 1), ("block", 0)]
)
def test_a_kept_module_is_kept_with_all_that_is_inside_it(
    written: Callable[[Precision], Path], module: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is converted and what is counted follow one rule; attention's own products have no parameter."""
    monkeypatch.setitem(POLICIES, "fp16", Policy(precision="fp16", keep={module: "for this test"}))
    found, _ = census.of_graph(written("fp16"), "fp16")
    found.require("model", "fp16")
    assert (found.counts["fp32"].products, found.counts["fp16"].products) == (kept, PRODUCTS - kept)


def test_bytes_are_those_of_the_weights(written: Callable[[Precision], Path]) -> None:
    path = written("fp16")
    found, _ = census.of_graph(path, "fp16")
    # small tensors stay in the graph itself
    assert abs(found.counts["fp16"].bytes - path.with_suffix(".data").stat().st_size) < 20_000


def test_a_graph_that_was_left_in_float32_is_refused(written: Callable[[Precision], Path]) -> None:
    found, _ = census.of_graph(written("fp32"), "fp16")
    with pytest.raises(
        BackendError, match=r"model was asked for in fp16, but 15 products are not: embed \(Conv\) runs in fp32"
    ):
        found.require("model", "fp16")


def test_a_product_of_dequantized_values_runs_in_eight_bits(
    graph_of: Callable[[str], ir.Model], tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[1,4] image) => (float[1,4] logits)
    <float scale = {0.1}, int8 zero = {0}, int8[4,4] weight = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> {
        q = QuantizeLinear (image, scale, zero)
        x = DequantizeLinear (q, scale, zero)
        w = DequantizeLinear (weight, scale, zero)
        logits = MatMul (x, w)
    }"""
    ir.save(ir.passes.common.ShapeInferencePass()(graph_of(text)).model, tmp_path / "m.onnx")
    found, _ = census.of_graph(tmp_path / "m.onnx", "int8")
    assert found.counts["int8"].products == 1
    assert found.faults == []


def layer(name: str, kind: str, inputs: str, output: str, nodes: list[str]) -> dict[str, object]:
    def tensor(dtype: str) -> dict[str, object]:
        return {"name": "t", "shape": [1, 10], "dtype": dtype, "format": ""}

    return {"name": name, "type": kind, "inputs": [tensor(each) for each in inputs.split()], "constants": [],
            "outputs": [tensor(output)], "tactic": "", "onnx_nodes": nodes}  # fmt: skip


def test_kernels_are_counted_by_what_they_multiply() -> None:
    layers = [
        layer("fc", "runtime_fusion", "Half Float", "Half", ["matmul", "add"]),  # with a wider residual
        layer("_gemm_mha_v2", "kgen", "Half Half Half", "Half", ["scores", "softmax", "values"]),
        layer("norm", "kgen", "Half", "Float", ["matmul"]),  # moves what a product will take
    ]
    found = census.of_engine(layers, {"matmul": {"fp16"}, "scores": {"fp16"}, "values": {"fp16"}})
    found.require("engine", "fp16")
    assert (found.counts["fp16"].operations, found.counts["fp16"].products) == (2, 2)
    assert (found.counts["fp32"].operations, found.counts["fp32"].products) == (1, 0)
    assert found.counts["fp16"].bytes == 2 * 10 * 7
    assert found.counts["fp32"].bytes == 4 * 10 * 2


def test_an_engine_that_multiplies_in_float32_is_refused() -> None:
    layers = [
        layer("fc1", "gemm", "Half", "Half", ["fc1"]),
        layer("fc2", "gemm", "Float", "Half", ["fc2"]),
    ]
    found = census.of_engine(layers, {"fc1": {"fp16"}, "fc2": {"fp16"}})
    with pytest.raises(
        BackendError, match="model.engine was asked for in fp16, but 1 products are not: fc2 runs in fp32"
    ):
        found.require("model.engine", "fp16")
    assert census.of_engine(layers, {"fc1": {"fp16"}, "fc2": {"fp32"}}).faults == []
    with pytest.raises(BackendError, match="no product runs in it"):
        census.of_engine([], {}).require("model.engine", "fp16")


def test_shapes_that_are_not_known_have_no_bytes() -> None:
    unknown = layer("fc", "gemm", "Half", "Half", ["fc"])
    unknown["inputs"] = [{"name": "t", "shape": ["rows", 10], "dtype": "Half", "format": ""}]
    assert census.of_engine([unknown], {"fc": {"fp16"}}).counts["fp16"].bytes == np.dtype(np.float16).itemsize * 10
