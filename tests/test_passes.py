"""Each pass: it fires, numbers are unchanged, it is quiet on a near miss and on a second run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes import common

from ropevit_export import passes
from ropevit_export.errors import PassError
from ropevit_export.passes import apply, edit, simplify
from ropevit_export.passes.heads import HeadsFirst
from ropevit_export.passes.linear import linear_layers
from ropevit_export.passes.norms import ScaleAfterProduct
from ropevit_export.passes.patches import PatchesToDepth
from ropevit_export.passes.precision import POLICIES, RetypeIo, ToHalf
from ropevit_export.passes.reshape import StaticReshape
from ropevit_export.passes.simplify import FoldSequences, Simplify
from ropevit_export.passes.swin import MeanAfterHead
from ropevit_export.passes.verify import verify
from ropevit_export.trace.export import trace
from ropevit_export.values import Dim, Graph, IoSpec, Resolution
from tests.conftest import LOGITS, Case

Text = Callable[[str], ir.Model]
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
IO = IoSpec(
    resolution=Resolution(height=2, width=2), batch=Dim(min=1, opt=1, max=1), outputs=LOGITS, pixels=False
)  # fmt: skip
SPLIT = f"""{HEADER}
g (float[1,4] image) => (float[1,4] logits) <int64 two = {{2}}, int64 zero = {{0}}, int64 one = {{1}}> {{
    parts = SplitToSequence <axis = 1> (image, two)
    a = SequenceAt (parts, zero)
    b = SequenceAt (parts, one)
    logits = Concat <axis = 1> (b, a)
}}"""
SHAPES = f"""{HEADER}
g (float[2,3] image) => (float[6] logits) {{
    shape = Shape (image)
    size = ReduceProd <keepdims = 1> (shape)
    logits = Reshape (image, size)
}}"""
PLAIN = f"""{HEADER}
g (float[1,3,2,2] image) => (float[1,3,2,2] logits) <float[1] scale = {{0.5}}> {{
    half = Mul (image, scale)
    logits = Add (half, image)
}}"""


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, feeds)[0]
    return out


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_onnxsim_folds_shapes_and_leaves_numbers(graph_of: Text) -> None:
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = Simplify()(graph_of(SHAPES))
    assert result.modified
    assert kinds(result.model) == ["Reshape"]
    assert np.array_equal(run(result.model, image=image), image.reshape(-1))
    assert not Simplify()(result.model).modified


def test_weights_pass_through_simplification_as_the_same_objects(graph_of: Text) -> None:
    model = graph_of(f"{HEADER} g (float[1,64] image) => (float[1,64] logits) {{ logits = MatMul (image, weight) }}")
    weight = ir.Value(name="weight", const_value=ir.tensor(np.eye(64, dtype=np.float32)))
    model.graph[0].replace_input_with(1, weight)
    model.graph.register_initializer(weight)
    simple = Simplify()(model).model
    assert simple.graph.initializers["weight"].const_value is weight.const_value
    assert [value.name for value in simple.graph.inputs] == ["image"]


def test_a_split_written_as_a_sequence_becomes_a_split(graph_of: Text) -> None:
    image = np.arange(4, dtype=np.float32)[None]
    model = graph_of(SPLIT)
    assert FoldSequences()(model).modified
    assert "SplitToSequence" not in kinds(model)
    assert np.array_equal(run(model, image=image), image[:, [2, 3, 0, 1]])


def test_folding_sequences_is_quiet_where_there_are_none(graph_of: Text) -> None:
    assert not FoldSequences()(graph_of(PLAIN)).modified


@pytest.mark.parametrize(
    ("attributes", "plain"),
    [("alpha = 1.0", 1), ("alpha = 1.0, beta = 1.0, transA = 0, transB = 0", 1), ("transA = 1", 0), ("transB = 1", 0),
     ("alpha = 0.5", 0), ("beta = 2.0", 0)],
)  # fmt: skip
def test_a_gemm_is_a_linear_layer_where_it_is_plain(graph_of: Text, attributes: str, plain: int) -> None:
    model = graph_of(f"""{HEADER}
g (float[2,2] image) => (float[2,2] logits) <float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}, float[2] b = {{1.0, 2.0}}> {{
    product = Gemm <{attributes}> (image, w, b)
    logits = Relu (product)
}}""")
    layers = linear_layers(model)
    assert len(layers) == plain
    assert [(layer.bias.name, layer.add) for layer in layers if layer.bias] == [("b", None)] * plain


def test_half_precision_computes_in_half_between_float_ends(graph_of: Text) -> None:
    image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    model = graph_of(PLAIN)
    theirs = run(model, image=image)
    ToHalf(POLICIES["fp16"])(model)
    assert kinds(model) == ["Cast", "Mul", "Add", "Cast"]
    assert model.graph.initializers["scale"].dtype == ir.DataType.FLOAT16
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert [value.name for value in model.graph.outputs] == ["logits"]
    np.testing.assert_allclose(run(model, image=image), theirs, atol=2e-3)


@pytest.mark.parametrize(("form", "inside"), [("fp16", ["Mul", "Add"]), ("fp32", ["Cast", "Mul", "Add", "Cast"])])
def test_ends_take_a_format_without_a_cast_where_the_graph_computes_in_it(
    graph_of: Text, form: str, inside: list[str]
) -> None:
    image = np.linspace(-1, 1, 12, dtype=np.float16).reshape(1, 3, 2, 2)
    model = common.ShapeInferencePass()(graph_of(PLAIN)).model
    if form == "fp16":
        ToHalf(POLICIES["fp16"])(model)
    theirs = run(model, image=image.astype(np.float32))
    assert RetypeIo(ir.DataType.FLOAT16)(model).modified
    common.CheckerPass(full_check=True)(model)
    assert kinds(model) == inside
    assert (model.graph.inputs[0].dtype, model.graph.outputs[0].dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT16)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["image", "logits"]
    assert np.array_equal(run(model, image=image), theirs.astype(np.float16))
    assert not RetypeIo(ir.DataType.FLOAT16)(model).modified


def test_a_shape_is_asked_of_the_input_itself(graph_of: Text) -> None:
    """Not of a copy in the format that the graph computed in."""
    text = f"""{HEADER} g (float[1,4] image) => (float16[1,4] logits) {{
        inside = Cast <to = 10> (image)
        shape = Shape (image)
        twice = Add (inside, inside)
        logits = Reshape (twice, shape)
    }}"""
    model = common.ShapeInferencePass()(graph_of(text)).model
    assert RetypeIo(ir.DataType.FLOAT16)(model).modified
    assert sorted(kinds(model)) == ["Add", "Reshape", "Shape"]
    assert np.array_equal(run(model, image=np.ones((1, 4), np.float16)), np.full((1, 4), 2, np.float16))


def test_a_cast_to_another_format_stays_behind_an_input(graph_of: Text) -> None:
    text = f"""{HEADER} g (float[1,2] image) => (float16[1,2] logits) {{
        inside = Cast <to = 10> (image)
        whole = Cast <to = 7> (image)
        cut = Cast <to = 10> (whole)
        logits = Add (inside, cut)
    }}"""
    model = common.ShapeInferencePass()(graph_of(text)).model
    assert RetypeIo(ir.DataType.FLOAT16)(model).modified
    common.CheckerPass(full_check=True)(model)
    assert np.array_equal(run(model, image=np.array([[1.5, -3.25]], np.float16)), np.array([[2.5, -6.25]], np.float16))


def test_ends_of_whole_numbers_stay(graph_of: Text) -> None:
    text = f"{HEADER} g (uint8[1,2] image) => (float[1,2] logits) {{ logits = Cast <to = 1> (image) }}"
    model = graph_of(text)
    assert RetypeIo(ir.DataType.FLOAT16)(model).modified
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert np.array_equal(run(model, image=np.array([[3, 4]], np.uint8)), np.array([[3, 4]], np.float16))


def test_a_weight_beyond_half_precision_is_named(graph_of: Text) -> None:
    with pytest.raises(PassError, match="scale holds 7e\\+04, fp16 ends at 65504: use --precision bf16 or fp32"):
        ToHalf(POLICIES["fp16"])(graph_of(PLAIN.replace("0.5", "70000.0")))


DYNAMIC = f"""{HEADER}
g (float[batch,4] image) => (float[batch,4] logits)
<float[8] table = {{0, 1, 2, 3, 4, 5, 6, 7}}, int64[1] zero = {{0}}, int64[1] four = {{4}},
 float[1] third = {{0.333333}}> {{
    part = Slice (table, zero, four)
    exact = Mul (part, third)
    logits = Mul (image, exact)
}}"""


def test_tables_that_the_graph_computes_stay_float_until_they_meet_the_image(graph_of: Text) -> None:
    model = common.ShapeInferencePass()(graph_of(DYNAMIC)).model
    ToHalf(POLICIES["fp16"])(model)
    types = {value.name: value.dtype for node in model.graph for value in node.outputs}
    assert (types["part"], types["exact"]) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert types["exact_f16"] == ir.DataType.FLOAT16
    assert model.graph.initializers["table"].dtype == ir.DataType.FLOAT
    image = np.ones((2, 4), np.float32)
    theirs = np.float16(np.arange(4, dtype=np.float32) * np.float32(0.333333))
    assert np.array_equal(run(model, image=image), np.stack([theirs, theirs]).astype(np.float32))


RESHAPE = f"""{HEADER}
g (float[batch,6,rows] image) => (float[batch,2,3,rows] logits) <int64[1] two = {{2}}, int64[1] three = {{3}}> {{
    b = Shape <start = 0, end = 1> (image)
    r = Shape <start = 2> (image)
    shape = Concat <axis = 0> (b, two, three, r)
    logits = Reshape <allowzero = 1> (image, shape)
}}"""


def test_a_computed_reshape_becomes_a_constant_one(graph_of: Text) -> None:
    image = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    model = graph_of(RESHAPE)
    assert StaticReshape()(model).modified
    common.RemoveUnusedNodesPass()(model)
    assert kinds(model) == ["Reshape"]
    assert [value.name for value in model.graph.initializers.values() if str(value.name).startswith("shape_")] == [
        "shape_0_2_3_m1"
    ]
    assert np.array_equal(run(model, image=image), image.reshape(2, 2, 3, 3))
    assert not StaticReshape()(model).modified


def test_a_reshape_with_two_unknown_extents_stays(graph_of: Text) -> None:
    model = graph_of(
        f"""{HEADER}
        g (float[batch,tokens] image, int64[3] shape) => (float[tokens,batch,1] logits) {{
            logits = Reshape (image, shape)
        }}"""
    )
    assert not StaticReshape()(model).modified


@pytest.mark.parametrize(
    ("change", "fires"),
    [
        (("", ""), True),
        (("strides = [2,2]", "strides = [2,2], pads = [0,0,0,0], dilations = [1,1], group = 1"), True),
        (("strides = [2,2]", "strides = [1,1]"), False),
        (("strides = [2,2]", "strides = [2,2], pads = [1,1,1,1]"), False),
        (("strides = [2,2]", "strides = [2,2], dilations = [2,2]"), False),
    ],
)
def test_patches_become_channels(graph_of: Text, change: tuple[str, str], fires: bool) -> None:
    text = f"""{HEADER}
        g (float[1,3,4,6] image, float[5,3,2,2] weight, float[5] bias) => (float[1,5,rows,columns] logits) {{
            logits = Conv <strides = [2,2]> (image, weight, bias)
        }}"""
    model = graph_of(text.replace(*change))
    rng = np.random.default_rng(0)
    for value in [model.graph.inputs.pop(1), model.graph.inputs.pop(1)]:
        array = rng.standard_normal(value.shape.numpy(), np.float32)  # type: ignore[union-attr]
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    image = rng.standard_normal((1, 3, 4, 6), np.float32)
    expected = run(model, image=image)
    assert PatchesToDepth()(model).modified is fires
    assert kinds(model) == ["SpaceToDepth", "Conv"] if fires else ["Conv"]
    assert np.abs(run(model, image=image) - expected).max() < 1e-5
    assert not PatchesToDepth()(model).modified


def test_history_says_what_fired(graph_of: Text) -> None:
    graph = apply(Graph(model=graph_of(SHAPES), io=IO), [Simplify(), FoldSequences()])
    said = [(each.name, each.fired, each.nodes_before, each.nodes_after) for each in graph.history]
    assert said == [("Simplify", True, 3, 1), ("FoldSequences", False, 1, 1)]


def test_a_legal_graph_passes(graph_of: Text) -> None:
    verify(Graph(model=graph_of(PLAIN), io=IO))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("Mul (image, scale)", "Sin (image)"), "1 Sin"),
        (("half = Mul (image, scale)", "half = my.domain.Thing (image)"), "operators of my.domain"),
        (
            ("=> (float[1,3,2,2] logits)", "=> (float[1,3,2,2] scores)"),
            "outputs are \\['scores'\\], needed \\['logits'\\]",
        ),
        (
            ("(float[1,3,2,2] image)", "(float[1,3,2,3] image)"),
            r"inputs are {'image': \(1, 3, 2, 3\)}, needed {'image': \(1, 3, 2, 2\)}",
        ),
        (("(float[1,3,2,2] image)", "(float16[1,3,2,2] image)"), "image is float16, needed float32"),
    ],
)
def test_an_illegal_graph_is_refused(graph_of: Text, change: tuple[str, str], sentence: str) -> None:
    text = PLAIN.replace(*change)
    text = text.replace("logits = Add", "scores = Add") if "scores" in text else text
    if "my.domain" in text:
        text = text.replace('"" : 20', '"" : 20, "my.domain" : 1')
    with pytest.raises(PassError, match=sentence):
        verify(Graph(model=graph_of(text), io=IO))


def test_a_table_stored_twice_is_refused(graph_of: Text) -> None:
    model = graph_of(PLAIN)
    table = np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)
    for name in ("cos_0", "cos_1"):
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(table.copy())))
    with pytest.raises(PassError, match="cos_1 and cos_0 are the same tensor stored twice"):
        verify(Graph(model=model, io=IO))


@pytest.mark.parametrize(
    "finish",
    [passes.simplify, lambda graph: passes.convert(graph, "fp16"), passes.for_openvino,
     lambda graph: passes.for_onnxruntime(graph, "fp32")],
    ids=["simplify", "convert", "for_openvino", "for_onnxruntime"],
)  # fmt: skip
def test_what_is_finished_is_verified(case: Callable[..., Case], finish: Callable[[Graph], object]) -> None:
    each = case("rope_mixed_deit_small", "32")
    graph = simplify(trace(each.spec, each.sized, each.tables, each.io()))
    image = graph.model.graph.inputs[0]
    assert image.dtype is not None
    sine = ir.node("Sin", [image])
    sine.outputs[0].dtype, sine.outputs[0].shape = image.dtype, image.shape
    image.replace_all_uses_with(sine.outputs[0])
    sine.replace_input_with(0, image)
    graph.model.graph.insert_before(graph.model.graph[0], sine)
    with pytest.raises(PassError, match="the graph is not legal: 1 Sin"):
        finish(graph)


MERGE = (
    HEADER
    + """
g (float[2,6,8] image) => (float[2,6,4] logits) <
  float[8] gain = {1, 2, 0.5, 1, 1, 3, 1, 1}, float[8] shift = {0.5, 0, 0, -1, 0, 0, 2, 0},
  float[8,4] down_weight = {%s}, int64[4] rows = {2, 3, 2, 4}, int64[3] back = {2, 6, 4}> {
    norm = LayerNormalization <axis = -1, epsilon = 0.001> (image, gain, shift)
    product = MatMul (norm, down_weight)
    pairs = Reshape (product, rows)
    turned = Transpose <perm = [0, 2, 1, 3]> (pairs)
    logits = Reshape (turned, back)
}"""
)


def merge_graph(graph_of: Text) -> tuple[ir.Model, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    model = graph_of(MERGE % ", ".join(f"{float(each):.8f}" for each in weight.ravel()))
    common.ShapeInferencePass()(model)
    ToHalf(POLICIES["fp16"])(model)
    return model, weight


def merged(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What the merge's graph computes, in float64."""
    x = image.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.001)
    x = x * [1, 2, 0.5, 1, 1, 3, 1, 1] + [0.5, 0, 0, -1, 0, 0, 2, 0]
    y: np.ndarray = (x @ weight.astype(np.float64)).reshape(2, 3, 2, 4).transpose(0, 2, 1, 3).reshape(2, 6, 4)
    return y


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 30), (1e-3, 0), (2e4, 0)])
def test_a_merge_scales_after_its_product(graph_of: Text, scale: float, offset: float) -> None:
    model, weight = merge_graph(graph_of)
    assert ScaleAfterProduct()(model).modified
    common.CheckerPass(full_check=True)(model)
    kinds = [node.op_type for node in model.graph]
    assert "LayerNormalization" not in kinds
    assert kinds.count("MatMul") == 1
    # Behind the tokens' new order, which the norm's input is brought to as well, half a norm at a time.
    assert (kinds.count("Transpose"), kinds.count("Split")) == (2, 1)
    # Inputs near the largest float16 give no larger product.
    assert np.abs(edit.array_of(model.graph.initializers["down_weight"]).astype(np.float64)).sum(0).max() <= 1
    image = (np.random.default_rng(1).standard_normal((2, 6, 8)) * scale + offset).astype(np.float16)
    assert np.isfinite(image).all()
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    ours = session.run(None, {"image": image.astype(np.float32)})[0]
    theirs = merged(image, weight)
    np.testing.assert_allclose(ours, theirs, atol=(2e-2 if offset else 5e-3) * np.abs(theirs).max())
    assert not ScaleAfterProduct()(model).modified


NORM = (
    HEADER
    + """
g (float[1,6,8] image) => (float[1,6,12] logits) <
  float[8] gain = {1, 2, 0.5, 1, 1, 3, 1, 1}, float[8] shift = {0.5, 0, 0, -1, 0, 0, 2, 0},
  float[8,12] gate_weight = {%s}, float[8,12] value_weight = {%s},
  float[12] gate_bias = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}> {
    norm = LayerNormalization <axis = -1, epsilon = 0.001> (image, gain, shift)
    product = MatMul (norm, gate_weight)
    gate = Add (product, gate_bias)
    logits = Mul (gate, gate)
}"""
)
GATED = ("logits = Mul (gate, gate)", "value = MatMul (norm, value_weight)\n    logits = Mul (gate, value)")


def norm_graph(graph_of: Text, *changes: tuple[str, str]) -> ir.Model:
    numbers = np.random.default_rng(0).standard_normal((2, 96))
    text = NORM
    for change in changes:
        assert change[0] in text
        text = text.replace(*change)
    model = graph_of(text % tuple(", ".join(f"{each:.8f}" for each in row) for row in numbers))
    return common.ShapeInferencePass()(model).model


@pytest.mark.parametrize("changes", [(), (GATED,), (("= Add (product, gate_bias)", "= Neg (product)"),)])
def test_a_norm_moves_behind_its_products(graph_of: Text, changes: tuple[tuple[str, str], ...]) -> None:
    model = norm_graph(graph_of, *changes)
    image = (np.random.default_rng(1).standard_normal((1, 6, 8)) * 5 + 2).astype(np.float32)
    theirs = run(model, image=image)
    assert ScaleAfterProduct()(model).modified
    common.CheckerPass(full_check=True)(model)
    assert "LayerNormalization" not in kinds(model)
    ours = run(model, image=image)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    (raw,) = (node for node in model.graph if node.op_type == "MatMul" and node.inputs[0] is model.graph.inputs[0])
    # No product is larger than the largest input.
    weight = raw.inputs[1]
    assert weight is not None
    assert 0.5 < np.abs(edit.array_of(weight)).sum(0).max() <= 1
    assert not ScaleAfterProduct()(model).modified


@pytest.mark.parametrize(
    "text",
    [
        MERGE.replace("product = MatMul (norm, down_weight)", "plain = MatMul (norm, down_weight)\n"
                      "    product = Add (plain, bias)").replace("{%s}", "{%s}, float[4] bias = {1, 2, 3, 4}"),
        NORM.replace("= Add (product, gate_bias)", "= Transpose <perm = [1, 0, 2]> (product)").replace(
            "[1,6,12] logits", "[6,1,12] logits"),
    ],
    ids=["a bias", "not to half the channels"],
)  # fmt: skip
def test_what_is_no_merge_scales_right_behind_its_product(graph_of: Text, text: str) -> None:
    rng = np.random.default_rng(0)
    numbers = tuple(", ".join(f"{each:.8f}" for each in rng.standard_normal(32 if "down" in text else 96))
                    for _ in range(text.count("%s")))  # fmt: skip
    model = common.ShapeInferencePass()(graph_of(text % numbers)).model
    image = rng.standard_normal((2 if "down" in text else 1, 6, 8)).astype(np.float32)
    theirs = run(model, image=image)
    assert ScaleAfterProduct()(model).modified
    assert kinds(model).count("Transpose") == 1
    assert "Split" not in kinds(model)
    np.testing.assert_allclose(run(model, image=image), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "changes",
    [
        ((GATED[0], GATED[1].replace("value_weight", "gate_weight")),),
        (GATED, ("(float[1,6,8] image) => (float[1,", "(float[4,6,8] image) => (float[4,")),
        (("norm = ", "twice = Add (gain, gain)\n    norm = "), ("(image, gain, shift)", "(image, twice, shift)")),
    ],
    ids=["a weight of two products", "a gate in a batch of four", "a gain that the graph computes"],
)
def test_a_norm_stays(graph_of: Text, changes: tuple[tuple[str, str], ...]) -> None:
    assert not ScaleAfterProduct()(norm_graph(graph_of, *changes)).modified


def test_a_norm_with_other_readers_stays(graph_of: Text) -> None:
    text = MERGE.replace("= MatMul (norm, ", "= MatMul (twice, ").replace(
        "product =", "twice = Add (norm, norm)\n    product ="
    )
    model = common.ShapeInferencePass()(graph_of(text % ", ".join(["1"] * 32))).model
    assert not ScaleAfterProduct()(model).modified


@pytest.mark.parametrize("model", ["deit_small", "rope_axial_deit_small", "rope_mixed_deit_small"])
def test_heads_come_first(case: Callable[..., Case], model: str) -> None:
    each = case(model, "32")
    graph = simplify(trace(each.spec, each.sized, each.tables, each.io()))
    theirs = run(graph.model, image=each.images[:1])
    assert HeadsFirst()(graph.model).modified
    common.RemoveUnusedNodesPass()(graph.model)
    common.CheckerPass(full_check=True)(graph.model)
    orders = [list(node.attributes["perm"].as_ints()) for node in graph.model.graph if node.op_type == "Transpose"]
    assert orders.count([2, 0, 3, 1, 4]) == len(each.spec.blocks)
    np.testing.assert_allclose(run(graph.model, image=each.images[:1]), theirs, atol=1e-5 * np.abs(theirs).max())
    assert not HeadsFirst()(graph.model).modified


def test_heads_stay_where_scores_have_a_bias(case: Callable[..., Case]) -> None:
    each = case("swin_tiny", "64")
    assert not HeadsFirst()(simplify(trace(each.spec, each.sized, each.tables, each.io())).model).modified


HEAD = (
    HEADER
    + """
g (float[2,6,4] image) => (float[2,3] logits) <
  int64[1] axes = {1}, float[3] head_bias = {1, -2, 3},
  float[4,3] head_weight = {1, 2, 3, 4, 5, 6, 7, 8, -9, 1, 0, 2}> {
    mean = ReduceMean <keepdims = 0> (image, axes)
    logits = Gemm (mean, head_weight, head_bias)
}"""
)
AS_MATMUL = ("logits = Gemm (mean, head_weight, head_bias)",
             "product = MatMul (mean, head_weight)\n    logits = Add (product, head_bias)")  # fmt: skip


@pytest.mark.parametrize("change", [("", ""), AS_MATMUL])
def test_the_mean_moves_behind_the_head(graph_of: Text, change: tuple[str, str]) -> None:
    model = graph_of(HEAD.replace(*change))
    common.ShapeInferencePass()(model)
    assert MeanAfterHead()(model).modified
    common.CheckerPass(full_check=True)(model)
    assert [node.op_type for node in model.graph] == ["Reshape", "MatMul", "Reshape", "Transpose", "ReduceMean", "Add"]
    image = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    ours = session.run(["logits"], {"image": image})[0]
    weight = np.array([[1, 2, 3], [4, 5, 6], [7, 8, -9], [1, 0, 2]], np.float64)
    np.testing.assert_allclose(ours, image.astype(np.float64).mean(1) @ weight + [1, -2, 3], rtol=1e-5, atol=1e-5)
    assert not MeanAfterHead()(model).modified


def test_a_mean_that_something_else_reads_or_without_a_bias_stays(graph_of: Text) -> None:
    read = HEAD.replace("=> (float[2,3] logits)", "=> (float[2,3] logits, float[2,4] other)")
    read = read.replace("image, axes)", "image, axes)\n    other = Neg (mean)")
    plain = HEAD.replace("head_weight, head_bias)", "head_weight)")
    for text in (read, plain, HEAD.replace("keepdims = 0", "keepdims = 1")):
        assert not MeanAfterHead()(graph_of(text)).modified


def test_a_constant_is_shared_only_with_its_equal(graph_of: Text) -> None:
    graph = graph_of(PLAIN).graph
    added = edit.constant(graph, "table", np.array([1.0, np.nan], np.float32))
    assert edit.constant(graph, "table", np.array([1.0, np.nan], np.float32)) is added
    assert edit.constant(graph, "scale", np.array([0.5], np.float32)) is graph.initializers["scale"]
    with pytest.raises(PassError, match="adds the constant table, but the graph has other numbers under that name"):
        edit.constant(graph, "table", np.array([2.0, np.nan], np.float32))
    for other in (np.array([1.0, np.nan], np.float16), np.array([[1.0, np.nan]], np.float32)):
        with pytest.raises(PassError, match="adds the constant table as .* the graph has it as float32 .2,."):
            edit.constant(graph, "table", other)
    assert list(graph.initializers) == ["scale", "table"]
