"""16-bit graphs: what stays float32, what overflows, and arithmetic that rounds as the format does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common
from safetensors.torch import save_file

from ropevit_export import cli, passes
from ropevit_export.backends.emulation import Emulated
from ropevit_export.backends.onnxruntime import OnnxRuntime
from ropevit_export.backends.select import checkers
from ropevit_export.bundle import onnx_file
from ropevit_export.errors import BackendError, PassError
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import find_model
from ropevit_export.parity import tolerance
from ropevit_export.passes.places import Probe, places
from ropevit_export.passes.precision import POLICIES, ToHalf
from ropevit_export.trace.export import trace
from ropevit_export.values import Graph, IoSpec, Precision, Resolution
from tests.conftest import LOGITS, ONE, Case

Make = Callable[..., Case]
TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def simple(case: Case) -> Graph:
    return passes.simplify(trace(case.spec, case.sized, case.tables, case.io()))


def write(graph: Graph, path: Path) -> Path:
    onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), {"model": "test"})
    return path


def test_bfloat16_leaves_the_ends_of_the_model_in_float32(case: Make) -> None:
    each = case("rope_mixed_deit_small", "64")
    graph = passes.convert(simple(each), "bf16").model.graph
    computed = {node.op_type: {value.dtype for value in node.outputs} for node in graph if node.op_type != "Cast"}
    assert computed["Conv"] == {ir.DataType.FLOAT}
    assert computed["Gemm"] == {ir.DataType.FLOAT}  # the head
    for kind in ("MatMul", "Softmax", "Gelu", "LayerNormalization"):
        assert computed[kind] == {ir.DataType.BFLOAT16}
    weights = {name: value.dtype for name, value in graph.initializers.items() if name.endswith(".weight")}
    assert {name for name, dtype in weights.items() if dtype == ir.DataType.FLOAT} == {"embed.weight", "head.weight"}


def test_a_node_is_placed_in_the_module_of_its_parameter(case: Make) -> None:
    graph = simple(case("rope_mixed_deit_small", "64")).model.graph
    found = [(node.op_type, place) for node, place in places(graph).items()]
    assert ("Conv", "embed") in found
    assert ("Softmax", "blocks.0.attention.qkv") in found
    assert ("Gelu", "blocks.1.mlp.fc1") in found
    assert found[-1] == ("Gemm", "head")


@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_tiny"])
def test_probes_say_how_large_values_get(case: Make, model: str, tmp_path: Path) -> None:
    each = case(model, "64")
    graph = simple(each)
    copy, probes = passes.probed(graph.model)
    kinds = [node.op_type for node in graph.model.graph]
    session = OnnxRuntime(write(dataclasses.replace(graph, model=copy), tmp_path / "probed.onnx"))
    answers = session.run({"image": each.images[:1]})
    answer, reached = answers["logits"], [answers[probe.output] for probe in probes]
    by_kind = {probe.operation: float(value) for probe, value in zip(probes, reached, strict=True)}
    np.testing.assert_allclose(answer, each.theirs[:1], atol=2e-5)
    assert by_kind["Gemm"] == np.abs(answer).max()
    assert 0 < by_kind["Softmax"] <= 1
    assert [node.op_type for node in graph.model.graph] == kinds  # the graph itself is as it was


def test_what_comes_near_the_end_of_the_format_is_refused_by_name() -> None:
    reached = [
        (Probe(output="a", place="blocks.2.mlp.fc1", operation="MatMul"), 3e4),
        (Probe(output="b", place="blocks.3.attention.qkv", operation="MatMul"), 4e4),
        (Probe(output="c", place="head", operation="Gemm"), 9e9),
    ]
    with pytest.raises(PassError, match=r"^blocks.3.attention.qkv \(MatMul\) reaches 4e\+04 on the samples, fp16 ends"):
        passes.refuse_overflow(reached, "fp16")
    passes.refuse_overflow(reached, "bf16")
    with pytest.raises(PassError, match=r"^a place"):
        passes.refuse_overflow([(Probe(output="", place="a place", operation=""), float("nan"))], "bf16")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A checkpoint whose second block has a LayerNorm gain of 1e4."""
    tensors = dict(random_checkpoint(find_model("shallow_rope_axial_deit_small"), 0).tensors)
    tensors["blocks.1.norm1.weight"] = tensors["blocks.1.norm1.weight"] * 1e4
    save_file(tensors, tmp_path / "planted.safetensors")
    return tmp_path / "planted.safetensors"


def test_an_activation_that_overflows_is_refused_with_the_blocks_name(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--model",
        "shallow_rope_axial_deit_small",
        "--res",
        "32",
        "--weights",
        str(planted),
        "--engine",
        "none",
        "-q",
    )
    code = cli.run([*arguments, "--precision", "fp16", "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert code == 1
    assert err.startswith("error: blocks.1.")
    assert "fp16 ends at 65504: use --precision bf16 or fp32 for this model" in err
    assert not (tmp_path / "out").exists()


def test_a_graph_is_judged_in_float32_before_it_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tolerance.TOLERANCES, "fp32", tolerance.Tolerance(relative=1e-12, cosine=1.0))
    arguments = ("--model", "rope_mixed_deit_digits", "--res", "32", "--engine", "none", "-q", "--precision", "bf16")
    assert cli.run([*arguments, "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith("error: the float32 graph at 32")
    assert [path.name for path in tmp_path.iterdir()] == ["out.out-of-tolerance.md"]
    assert "FAILED" in (tmp_path / "out.out-of-tolerance.md").read_text()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_emulation_rounds_every_result(
    graph_of: Callable[[str], ir.Model], precision: Precision, tmp_path: Path
) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[1,64] image) => (float[1,64] logits) <float third = {0.3333333}, float one = {1.0}> {
        a = Mul (image, third)
        b = Add (a, one)
        logits = Mul (b, b)
    }"""
    model = common.ShapeInferencePass()(graph_of(text)).model
    io = IoSpec(resolution=Resolution.parse("8"), batch=ONE, outputs=LOGITS, pixels=False)
    graph = passes.apply(Graph(model=model, io=io), [ToHalf(POLICIES[precision])])
    image = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    ours = Emulated(write(graph, tmp_path / "m.onnx"), precision=precision).run({"image": image})["logits"]
    narrow = TYPES[precision]
    b = image.astype(narrow) * np.float32(0.3333333).astype(narrow) + np.ones((), narrow)
    assert np.array_equal(ours, (b * b).astype(np.float32))


def test_emulation_overflows_where_the_format_does(case: Make, tmp_path: Path) -> None:
    """ONNX Runtime's CPU provider, which computes in float32, lets the same graph pass."""
    each = case("rope_axial_deit_small", "64")
    tensors = {**each.sized.tensors, "blocks.1.norm1.weight": each.sized.tensors["blocks.1.norm1.weight"] * 3e4}
    wrong = dataclasses.replace(each, sized=dataclasses.replace(each.sized, tensors=tensors))
    write(passes.convert(simple(wrong), "fp16"), tmp_path / "m.onnx")
    answers = [runner.run({"image": each.images[:1]})["logits"] for runner in checkers(tmp_path / "m.onnx", "fp16")]
    assert len(answers) == 2
    assert not np.isfinite(answers[1]).all()


def test_a_graph_that_onnxruntime_cannot_run_is_refused_before_it_tries(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime's CPU provider has no bfloat16 for m.onnx: use OpenVINO"):
        OnnxRuntime(tmp_path / "m.onnx", precision="bf16")
