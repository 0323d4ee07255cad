"""8-bit graphs: codes and scales are right, numbers are near, runtimes compute where it counts in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from ropevit_export import passes, stages
from ropevit_export.backends.float32 import Float32Graph
from ropevit_export.backends.onnxruntime import OnnxRuntime
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.errors import BackendError, PassError
from ropevit_export.machine import hardware
from ropevit_export.models.adopt import adopt
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import find_model
from ropevit_export.passes import edit
from ropevit_export.passes.attention import FuseAttention, FuseRotation
from ropevit_export.passes.linear import linear_layers
from ropevit_export.passes.quantize import ranges
from ropevit_export.passes.quantize.codes import Coding, step_and_shift, weight_codes
from ropevit_export.passes.quantize.cpu import QuantizeAsItRuns
from ropevit_export.passes.quantize.engines import QuantizeLinear
from ropevit_export.passes.quantize.ranges import Range, balance, calibrate
from ropevit_export.request import EngineSpec, Request
from ropevit_export.trace.export import trace, trace_dynamic
from ropevit_export.values import Checkpoint, Dim, Graph, IoSpec, Plan, Resolution
from tests.conftest import LOGITS, Case

Make = Callable[..., Case]
Text = Callable[[str], ir.Model]
MODELS = ["rope_mixed_deit_small", "rope_axial_deit_small", "swin_rope_mixed_tiny"]
PAIR = """<ir_version: 10, opset_import: ["" : 20]>
g (float[2,3,4] image) => (float[2,3,2] logits) <
  float[4] gain = {1, 1, 1, 0.1}, float[4] shift = {0.1, 0, 0, 0},
  float[4,4] up_weight = {1, 2, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0, 2, 2, 2, 2}, float[4] up_bias = {1, 0, 0, -1},
  float[4,4] down_weight = {1, 0, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0, 2, 2, 2, 2}, float[4] down_bias = {0, 0, 0, 0},
  float[4,2] head_weight = {1, 2, 3, 4, 4, 3, 2, 1}> {
    x = LayerNormalization (image, gain, shift)
    a = MatMul (x, up_weight)
    b = Add (a, up_bias)
    c = Gelu (b)
    d = MatMul (c, down_weight)
    e = Add (d, down_bias)
    logits = MatMul (e, head_weight)
}"""


def infer(model: ir.Model, image: np.ndarray, *, optimised: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if hardware.cuts_8_bit_sums():  # as `runtime.load` does
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, {"image": image})[0]
    return out


def optimised_kinds(model: ir.Model, folder: Path) -> list[str]:
    """What ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    data = ir.to_proto(model).SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in ir.load(folder / "optimised.onnx").graph]


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def float_graph(case: Case) -> Graph:
    tables = case.tables
    return passes.run(trace(case.spec, case.sized, tables, case.io()), "fp32")


def quantized(case: Case, coding: Coding) -> passes.Quantized:
    return passes.run_quantized(
        float_graph(case), coding, [{"image": image[None]} for image in case.images], Float32Graph
    )


def with_shapes(model: ir.Model) -> ir.Model:
    return ir.passes.common.ShapeInferencePass()(model).model


@pytest.mark.parametrize("model", MODELS)
def test_int8_answers_nearly_as_the_reference_in_both_forms(case: Make, model: str) -> None:
    each = case(model, "64")
    both = quantized(each, "int8")
    assert both.onnxruntime is not None
    # On a CPU without VNNI sums of products may be cut at 16 bits in these sessions.
    least = 0.995 if hardware.cuts_8_bit_sums() else 0.998
    for graph in (both.engines, both.onnxruntime):
        ours = [infer(graph.model, image[None]) for image in each.images]
        assert min(cosine(a, b) for a, b in zip(ours, each.theirs, strict=True)) > least


def test_fp8_answers_nearly_as_the_reference(case: Make) -> None:
    each = case("rope_mixed_deit_small", "64")
    both = quantized(each, "fp8")
    assert both.onnxruntime is None
    ours = [infer(both.engines.model, image[None], optimised=False) for image in each.images]
    assert min(cosine(a, b) for a, b in zip(ours, each.theirs, strict=True)) > 0.99


@pytest.mark.parametrize(("coding", "kind"), [("int8", np.int8), ("fp8", ml_dtypes.float8_e4m3fn)])
def test_weights_are_coded_by_channel_and_zero_points_are_zero(case: Make, coding: Coding, kind: type) -> None:
    each = case("rope_mixed_deit_small", "64")
    layers = len(linear_layers(float_graph(each).model))
    graph = quantized(each, coding).engines.model.graph
    steps = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert layers == 4 * len(each.spec.blocks) + 1  # the last block's query is a layer of its own
    assert len(steps) == 3 * layers
    for node in steps:
        _, scale, zero = (None if value is None else value.const_value for value in node.inputs)
        assert scale is not None
        assert zero is not None
        assert scale.dtype == ir.DataType.FLOAT16
        assert (scale.numpy() > 0).all()
        assert zero.numpy().dtype == kind
        assert not zero.numpy().astype(np.float32).any()
    coded = {name: value.const_value for name, value in graph.initializers.items() if name.endswith(".weight_codes")}
    assert len(coded) == layers
    for name, codes in coded.items():
        scale = graph.initializers[name.replace("codes", "scale")].const_value
        assert codes is not None
        assert scale is not None
        assert codes.numpy().dtype == kind
        assert scale.numpy().shape == (codes.shape[1],)
        largest = np.abs(codes.numpy().astype(np.float32)).max(0)
        assert (largest >= (126 if kind is np.int8 else 416)).all()  # every channel uses its codes
    assert not [name for name in graph.initializers if name.endswith("qkv.weight")]


def test_attention_and_head_stay_as_they_are(case: Make) -> None:
    graph = quantized(case("rope_mixed_deit_small", "64"), "int8").engines.model.graph
    for node in graph:
        if node.op_type == "Softmax":
            products = [*node.predecessors(), *node.successors()]
            assert [each.op_type for each in products] == ["MatMul", "MatMul"]
            assert not {"QuantizeLinear", "DequantizeLinear"} & {
                before.op_type for each in products for before in each.predecessors()
            }
    assert graph.initializers["head.weight"].dtype == ir.DataType.FLOAT16


def test_onnxruntime_computes_every_linear_layer_in_8_bits(case: Make, tmp_path: Path) -> None:
    each = case("rope_axial_deit_small", "64")
    both = quantized(each, "int8")
    assert both.onnxruntime is not None
    kinds = optimised_kinds(both.onnxruntime.model, tmp_path)
    assert kinds.count("DynamicQuantizeMatMul") == 4 * len(each.spec.blocks) + 1  # the last query is apart
    assert kinds.count("Gemm") == kinds.count("Conv") == 1  # the head, the patches
    assert kinds.count("MultiHeadAttention") == kinds.count("RotaryEmbedding") - 1 == len(each.spec.blocks)
    assert not {"Softmax", "MatMul"} & set(kinds)


def test_weights_are_uint8_where_sums_would_be_cut(case: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = case("rope_mixed_deit_small", "192")
    both = quantized(each, "int8")
    assert both.onnxruntime is not None
    for number, graph in enumerate((both.engines, both.onnxruntime)):
        path = tmp_path / f"{number}.onnx"
        ir.save(graph.model, path)
        answers = []
        for features in (["avx2", "avx512_vnni"], ["avx2"], ["asimddp"]):
            monkeypatch.setattr(hardware, "cpu_features", lambda features=features: features)
            session = OnnxRuntime(path, precision="int8")
            assert session.describe.endswith(", weights as uint8 for want of VNNI") == (features == ["avx2"])
            answers.append(session.run({"image": each.images[:1]})["logits"])
        assert np.array_equal(answers[0], answers[2])
        assert cosine(answers[1], answers[0]) > 0.998  # with VNNI the same; without, the others are cut


def test_each_input_has_the_range_of_its_own_values(graph_of: Text) -> None:
    """What is measured as it runs follows an image that no calibration saw."""
    model = with_shapes(graph_of(PAIR))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    engines = with_shapes(graph_of(PAIR))
    ranges = calibrate(engines, [{"image": image}], Float32Graph)
    QuantizeLinear(ranges, "int8")(engines)
    QuantizeAsItRuns()(model)
    stronger = [ir.tensor(30 * np.array([1, 1, 1, 0.1], np.float32)) for _ in range(3)]
    plain = with_shapes(graph_of(PAIR))
    for each, gain in zip((model, engines, plain), stronger, strict=True):
        each.graph.initializers["gain"].const_value = gain
    theirs = infer(plain, image)
    assert cosine(infer(model, image), theirs) > 0.999
    assert cosine(infer(engines, image), theirs) < 0.99


def test_balancing_moves_outliers_and_leaves_numbers(graph_of: Text) -> None:
    model = with_shapes(graph_of(PAIR))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    theirs = infer(model, image)
    model.graph.initializers["gain"].const_value = ir.tensor(np.array([1, 1, 100, 0.1], np.float32))
    outlier = infer(model, image)
    before = calibrate(model, [{"image": image}], Float32Graph)
    after = balance(model, before)
    np.testing.assert_allclose(infer(model, image), outlier, rtol=1e-5, atol=1e-4)
    assert not np.allclose(theirs, outlier)
    spread = [each["x"].peaks.max() / each["x"].peaks.min() for each in (before, after)]
    assert spread[1] < spread[0] / 5
    measured = calibrate(model, [{"image": image}], Float32Graph)["x"]
    np.testing.assert_allclose(after["x"].high, measured.high, rtol=1e-5)


GATED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[2,3,4] image) => (float[2,3,2] logits) <
  float[4] gain = {1, 1, 1, 1}, float[4] shift = {0.1, 0, 0, 0},
  float[4,4] gate_weight = {1, 2, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0, 2, 2, 2, 2},
  float[4,4] up_weight = {1, 2, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0, 2, 2, 2, 2}, float[4] up_bias = {1, 0, 0, -1},
  float[4,4] down_weight = {1, 0, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0, 2, 2, 2, 2}, float[4] down_bias = {0, 0, 0, 0},
  float[4,2] head_weight = {1, 2, 3, 4, 4, 3, 2, 1}> {
    x = LayerNormalization (image, gain, shift)
    a = MatMul (x, gate_weight)
    s = Sigmoid (a)
    silu = Mul (a, s)
    b = MatMul (x, up_weight)
    c = Add (b, up_bias)
    gated = Mul (silu, c)
    d = MatMul (gated, down_weight)
    e = Add (d, down_bias)
    logits = MatMul (e, head_weight)
}"""


def test_balancing_moves_outliers_of_what_is_gated(graph_of: Text) -> None:
    model = with_shapes(graph_of(GATED))
    weight = model.graph.initializers["up_weight"]
    weight.const_value = ir.tensor(edit.array_of(weight) * np.array([1, 1, 100, 1], np.float32))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    theirs = infer(model, image)
    before = calibrate(model, [{"image": image}], Float32Graph)
    after = balance(model, before)
    np.testing.assert_allclose(infer(model, image), theirs, rtol=1e-5, atol=1e-4)
    spread = [each["gated"].peaks.max() / each["gated"].peaks.min() for each in (before, after)]
    assert spread[1] < spread[0] / 5
    measured = calibrate(model, [{"image": image}], Float32Graph)["gated"]
    np.testing.assert_allclose(after["gated"].high, measured.high, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("d = MatMul (gated, down_weight)", "f = Add (gated, c)\n    d = MatMul (f, down_weight)"),
        ("MatMul (x, gate_weight)", "MatMul (x, up_weight)"),
        ("e = Add (d, down_bias)", "e = Add (d, up_bias)"),
        ("e = Add (d, down_bias)", "f = Mul (gated, down_bias)\n    e = Add (d, f)"),
    ],
)
def test_what_is_gated_is_not_balanced_where_something_else_reads_it(old: str, new: str, graph_of: Text) -> None:
    model = with_shapes(graph_of(GATED.replace(old, new)))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    theirs = infer(model, image)
    bias = edit.array_of(model.graph.initializers["up_bias"]).copy()
    ranges = calibrate(model, [{"image": image}], Float32Graph)
    balance(model, ranges)
    np.testing.assert_allclose(infer(model, image), theirs, rtol=1e-5, atol=1e-4)
    assert np.array_equal(edit.array_of(model.graph.initializers["up_bias"]), bias)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["engines", "onnxruntime"])
def test_outliers_in_swiglu_cost_8_bits_little(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of DINOv3 S+, with two channels of each block's second factor thirtyfold, against its float32 graph."""
    spec = find_model("shallow_dinov3_small_plus")
    tensors = dict(random_checkpoint(spec, seed=0).dictionaries[""])
    for name in [each for each in tensors if ".mlp.fc1_x." in each]:
        tensors[name] = tensors[name].clone()
        tensors[name][[7, 19]] *= 30
    weights = adopt(spec, Checkpoint(dictionaries={"": tensors}, source="", revision=None, sha256="", trained=True))
    asked = Request(model=spec, resolutions=(Resolution(height=64, width=64),), output="tokens")
    (io,) = asked.graphs()
    made = np.random.default_rng(0).standard_normal((16, 1, 3, 64, 64)).astype(np.float32)
    float32 = stages.traced(asked, weights, io, lambda stage: None)
    theirs = [infer(float32.model, image) for image in made[8:]]

    def worst() -> float:
        graph = stages.traced(asked, weights, io, lambda stage: None)
        found = passes.run_quantized(graph, "int8", [{"image": image} for image in made[:8]], Float32Graph)
        ours = [infer(getattr(found, form).model, image) for image in made[8:]]
        return max(1 - cosine(*pair) for pair in zip(ours, theirs, strict=True))

    balanced = worst()
    monkeypatch.setattr(ranges, "_balance_gated", lambda model, ranges, layers: dict(ranges))
    assert balanced < 0.003
    assert worst() > 5 * balanced


def test_a_norm_that_something_else_reads_is_not_balanced(graph_of: Text) -> None:
    model = with_shapes(graph_of(PAIR.replace("c = Gelu (b)", "f = Add (b, x)\n    c = Gelu (f)")))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    ranges = calibrate(model, [{"image": image}], Float32Graph)
    assert balance(model, ranges) == ranges
    assert np.array_equal(model.graph.initializers["gain"].const_value.numpy(), np.array([1, 1, 1, 0.1], np.float32))  # type: ignore[union-attr]


def test_ranges_cover_all_images(graph_of: Text) -> None:
    model = with_shapes(graph_of(PAIR))
    images = np.random.default_rng(0).standard_normal((3, 2, 3, 4)).astype(np.float32)
    alone = [calibrate(model, [{"image": image}], Float32Graph)["c"] for image in images]
    together = calibrate(model, ({"image": image} for image in images), Float32Graph)["c"]
    assert np.array_equal(together.low, np.min([each.low for each in alone], 0))
    assert np.array_equal(together.high, np.max([each.high for each in alone], 0))


def test_no_image_and_no_number_are_errors(graph_of: Text) -> None:
    model = with_shapes(graph_of(PAIR))
    with pytest.raises(PassError, match="no calibration image was given: 8-bit ranges are measured on"):
        calibrate(model, [], Float32Graph)
    with pytest.raises(PassError, match="x is not finite on the calibration images"):
        calibrate(model, [{"image": np.full((2, 3, 4), np.nan, np.float32)}], Float32Graph)


def test_a_one_sided_range_uses_all_codes_and_keeps_zero() -> None:
    def ranged(low: list[float], high: list[float]) -> Range:
        return Range(low=np.array(low, np.float32), high=np.array(high, np.float32))

    given = ranged([-0.2, 0], [1, 9])
    step, shift = step_and_shift(given, "int8")
    codes = np.round(np.array([-0.2, 0, 9]) / step) - shift
    assert codes[1] == -shift
    assert -127 <= codes[0] <= -126 < 126 <= codes[2] <= 127
    assert step_and_shift(given, "fp8") == pytest.approx((9 / 448, 0))
    assert step_and_shift(ranged([-6], [9]), "int8") == pytest.approx((9 / 127, 0))
    assert step_and_shift(ranged([0], [0]), "int8")[0] > 0


def test_small_weights_follow_the_scale_that_half_precision_has() -> None:
    weight = np.linspace(-2e-5, 2e-5, 64, dtype=np.float16).reshape(8, 8)
    codes, scale = weight_codes(weight, "int8")
    assert scale.dtype == np.float16
    assert (scale > 0).all()
    np.testing.assert_allclose(codes * scale.astype(np.float64), weight.astype(np.float64), atol=scale.max() / 2)
    assert np.isfinite(weight_codes(np.zeros((4, 4), np.float32), "int8")[1]).all()


@pytest.mark.parametrize("form", ["engines", "onnxruntime"])
def test_quantizing_changes_numbers_little_and_only_once(graph_of: Text, form: str) -> None:
    model = with_shapes(graph_of(PAIR))
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    theirs = infer(model, image)
    ranges = calibrate(model, [{"image": image}], Float32Graph)
    step = QuantizeLinear(ranges, "int8") if form == "engines" else QuantizeAsItRuns()
    assert step(model).modified
    ours = infer(model, image)
    assert cosine(ours, theirs) > 0.999
    assert not np.array_equal(ours, theirs)
    assert [value.name for value in model.graph.outputs] == ["logits"]
    assert not step(model).modified


def test_both_forms_have_nearly_the_same_numbers(graph_of: Text) -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    answers = []
    for make in (lambda ranges: QuantizeLinear(ranges, "int8"), lambda _: QuantizeAsItRuns()):
        model = with_shapes(graph_of(PAIR))
        make(calibrate(model, [{"image": image}], Float32Graph))(model)
        answers.append(infer(model, image))
    np.testing.assert_allclose(answers[0], answers[1], atol=5e-3 * np.abs(answers[0]).max())


def test_rotation_and_attention_become_one_operator_each(case: Make) -> None:
    for model, size in (("rope_mixed_deit_small", "64x96"), ("rope_axial_deit_small", "64")):
        each = case(model, size)
        graph = float_graph(each).model
        theirs = infer(graph, each.images[:1])
        assert FuseRotation()(graph).modified
        assert FuseAttention()(graph).modified
        ir.passes.common.RemoveUnusedNodesPass()(graph)
        kinds = [node.op_type for node in graph.graph]
        assert (kinds.count("MultiHeadAttention"), kinds.count("RotaryEmbedding")) == (2, 3)
        assert not {"Softmax", "Neg", "Split"} & set(kinds)
        np.testing.assert_allclose(infer(graph, each.images[:1]), theirs, atol=1e-5)
        assert not FuseRotation()(graph).modified
        assert not FuseAttention()(graph).modified


def test_attention_with_a_mask_or_bias_stays(case: Make) -> None:
    graph = float_graph(case("swin_tiny", "64")).model
    assert not FuseRotation()(graph).modified
    assert not FuseAttention()(graph).modified


def test_a_graph_of_any_size_and_batch_is_quantized(case: Make) -> None:
    each = case("deit_small", "64")
    io = IoSpec(resolution=Resolution.parse("96"), batch=Dim(min=1, opt=2, max=4), outputs=LOGITS, pixels=False,
                rope="dynamic")  # fmt: skip
    graph = passes.run(trace_dynamic(each.spec, each.weights, [], io), "fp32")
    theirs = infer(graph.model, each.images[:2])
    both = passes.run_quantized(graph, "int8", [{"image": each.images}], Float32Graph)
    assert both.onnxruntime is not None
    for made in (both.engines, both.onnxruntime):
        assert cosine(infer(made.model, each.images[:2]), theirs) > 0.998
        assert infer(made.model, np.zeros((1, 3, 96, 32), np.float32)).shape == (1, 1000)


@pytest.fixture(scope="module")
def rtx() -> TensorRtRtx:
    try:
        return TensorRtRtx()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("coding", "dtype"), [("int8", "Int8"), ("fp8", "FP8")])
@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_rope_axial_tiny"])
def test_engines_compute_linear_layers_in_8_bits_and_fuse_attention(
    case: Make, model: str, coding: Coding, dtype: str, rtx: TensorRtRtx, tmp_path: Path
) -> None:
    each = case(model, "128")
    layers = len(linear_layers(float_graph(each).model))
    ir.save(quantized(each, coding).engines.model, tmp_path / "model.onnx")
    spec = EngineSpec(runtime=rtx.runtime, precision="fp16", targets=("89", "120"), profiles=())
    plan = rtx.build(tmp_path / "model.onnx", spec, tmp_path / "model.engine")
    assert len([layer for layer in plan.layers if "mha" in str(layer["name"])]) == len(each.spec.blocks)
    assert len(products(plan, dtype)) == layers


def products(plan: Plan, dtype: str) -> list[object]:
    """Kernels that multiply two tensors of a type: the input, and a weight that the builder shows or keeps inside."""
    found = []
    for layer in plan.layers:
        inputs = layer["inputs"]
        assert isinstance(inputs, list)
        if layer["type"] == "gemm" and inputs[0]["dtype"] == dtype:
            found.append(layer["name"])
    return found
