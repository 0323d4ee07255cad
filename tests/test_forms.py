"""The forms of a graph for one runtime: its own operators, the reference's numbers, and a wrong table is noticed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest

from ropevit_export import cli, passes
from ropevit_export.backends import select
from ropevit_export.backends.emulation import Emulated
from ropevit_export.bundle import manifest, onnx_file
from ropevit_export.inspect.graph import read
from ropevit_export.machine import hardware
from ropevit_export.models import zoo
from ropevit_export.models.zoo import find_model
from ropevit_export.passes import activations, attention, turn_by_head
from ropevit_export.runtime import load
from ropevit_export.trace.export import trace
from ropevit_export.values import Graph
from tests.conftest import Case

Make = Callable[..., Case]
MODELS = ("rope_mixed_deit_small", "rope_axial_deit_small", "deit_small", "swin_rope_mixed_tiny")


def rotations(case: Case) -> int:
    """Of q and of k in every block, but that the last block of a ViT turns keys only."""
    return 2 * len(case.spec.blocks) - (case.spec.window_of is None) if case.spec.rope.kind != "none" else 0


def graph_of(case: Case) -> Graph:
    return passes.run(trace(case.spec, case.sized, case.tables, case.io()))


def written(graph: Graph, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx_file.write(graph, path, onnx_file.WeightFile(path=folder / "weights.data"), {"model": "model"})
    return path


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def run_on_openvino(path: Path, images: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    """Answers, and the kernels that gave them."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = [np.array(compiled([image[None]])[0]) for image in images]
    ops = compiled.get_runtime_model().get_ops()
    return np.concatenate(answers), Counter(op.get_rt_info()["layerType"].astype(str) for op in ops)


def in_products(path: Path) -> list[str]:
    """The nodes of the graph that OpenVINO computes in the kernels of its products."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    products = [each for each in facts if each["layerType"].astype(str) == "FullyConnected"]
    return [name for each in products for name in each["originalLayersNames"].astype(str).split(",")]


@pytest.mark.parametrize("model", MODELS)
def test_onnxruntime_has_one_operator_for_a_rotation_and_one_for_attention(
    case: Make, model: str, tmp_path: Path
) -> None:
    each = case(model, "64")
    graph = graph_of(each)
    before = len(graph.model.graph)
    fast = passes.for_onnxruntime(graph, "fp32")
    assert fast is not None
    assert len(graph.model.graph) == before
    path = written(fast, tmp_path)
    found = kinds(path)
    assert found["RotaryEmbedding"] == rotations(each)
    assert found["MultiHeadAttention"] + found["Softmax"] == len(each.spec.blocks)
    assert not found["Softmax"] or each.spec.window_of  # shifted windows have a mask
    assert not found["Neg"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ours = np.concatenate([session.run(None, {"image": image[None]})[0] for image in each.images])
    np.testing.assert_allclose(ours, each.theirs, atol=1e-5)


@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_rope_mixed_tiny"])
def test_float16_has_onnxruntimes_operators_and_whole_norms(case: Make, model: str, tmp_path: Path) -> None:
    each = case(model, "64")
    fast = passes.for_onnxruntime(graph_of(each), "fp16")
    assert fast is not None
    path = written(fast, tmp_path)
    assert kinds(path)["LayerNormalization"] >= 2 * len(each.spec.blocks)
    runner = Emulated(path, precision="fp16")
    ours = np.concatenate([runner.run({"image": image[None]})["logits"] for image in each.images])
    error = np.abs(ours - each.theirs).max()
    assert 1e-5 < error < 0.015
    sized = {"image": (1, 3, 64, 64)}
    other = tmp_path / "portable"
    other.mkdir()
    portable = read(written(passes.convert(graph_of(each), "fp16"), other), sized)
    # a Swin's portable graph takes the mean after the head
    assert sum(read(path, sized).flops.values()) == pytest.approx(sum(portable.flops.values()), rel=0.02)


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("onnxruntime", "fp32", ("onnxruntime", "portable")),
        ("onnxruntime-cuda", "fp16", ("onnxruntime", "portable")),
        ("onnxruntime-cuda", "int8", ("portable",)),  # that form's 8-bit products are for a CPU
        ("onnxruntime-tensorrt", "fp16", ("portable",)),
    ],
)
def test_a_backend_takes_its_form(backend: str, precision: str, expected: tuple[str, ...]) -> None:
    assert select.forms(backend, precision) == expected


@pytest.mark.parametrize(
    ("features", "device", "first"),
    [
        (["avx2"], "CPU", "openvino-avx2"),
        (["avx2", "avx_vnni"], "CPU", "openvino-avx2"),
        (["avx2", "avx512f"], "CPU", "openvino"),
        (["asimddp"], "CPU", "openvino"),
        (["avx2"], "GPU", "openvino"),
    ],
)
def test_openvinos_form_is_the_processors(
    features: list[str], device: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    taken = select.forms("openvino", "fp32", device)
    assert (taken[0], set(taken)) == (first, {"openvino", "openvino-avx2", "portable"})


@pytest.mark.parametrize("model", MODELS)
def test_openvino_has_one_kernel_for_a_rotation(case: Make, model: str, tmp_path: Path) -> None:
    each = case(model, "64")
    portable = graph_of(each)
    turned = passes.for_openvino(portable)
    assert (turned is None) == (rotations(each) == 0)
    if turned is None:
        return
    ours, found = run_on_openvino(written(turned, tmp_path), each.images)
    assert found["RoPE"] == rotations(each)
    np.testing.assert_allclose(ours, each.theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "activation"),
    [
        ("rope_mixed_deit_small", "gelu"),
        ("eva02_tiny_336", "silu"),
        pytest.param("deit_small", "gelu", marks=pytest.mark.slow),
        pytest.param("swin_rope_mixed_tiny", "gelu", marks=pytest.mark.slow),
    ],
)
def test_without_avx512_openvino_fuses_no_activation_into_a_product(
    case: Make, model: str, activation: str, tmp_path: Path
) -> None:
    """OpenVINO's own list of what it computes in a product's kernel: with the activation, and without."""
    each = case(model, "56" if model == "eva02_tiny_336" else "64")
    graph = passes.for_openvino(graph_of(each)) or graph_of(each)
    before = len(graph.model.graph)
    apart = passes.for_openvino_without_avx512(graph)
    assert apart is not None
    assert len(graph.model.graph) == before
    fused, separate = tmp_path / "fused", tmp_path / "separate"
    fused.mkdir()
    separate.mkdir()
    assert any(activation in name for name in in_products(written(graph, fused)))
    path = written(apart, separate)
    assert not any(activation in name or "apart" in name for name in in_products(path))
    assert kinds(path)["Erf" if activation == "gelu" else "Sigmoid"] >= len(each.spec.blocks)
    ours, _ = run_on_openvino(path, each.images)
    np.testing.assert_allclose(ours, each.theirs, atol=1e-5)


@pytest.mark.parametrize("model", ["eva02_tiny_336", pytest.param("rope_reg1_gap_medium", marks=pytest.mark.slow)])
def test_the_last_layer_before_a_mean_computes_one_token(case: Make, model: str, tmp_path: Path) -> None:
    """In forms for CPUs; answers are the reference's, in a batch of two as well."""
    each = case(model, "56x84" if model == "eva02_tiny_336" else "64x96")
    forms = {"portable": graph_of(each)}
    for form, made in (("onnxruntime", passes.for_onnxruntime(forms["portable"], "fp32")),
                       ("openvino", passes.for_openvino(forms["portable"]))):  # fmt: skip
        assert made is not None
        forms[form] = made
    layer, work = f"blocks.{len(each.spec.blocks) - 1}.mlp.fc2.weight", {}
    for form, graph in forms.items():
        (tmp_path / form).mkdir()
        path = written(graph, tmp_path / form)
        (product,) = (node for node in graph.model.graph if layer in [value.name for value in node.inputs if value])
        work[form] = read(path, {"image": each.images[:1].shape}).flops[str(product.name)]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        ours = np.concatenate([session.run(None, {"image": image[None]})[0] for image in each.images])
        np.testing.assert_allclose(ours, each.theirs, atol=1e-5)
    rows, columns = each.spec.grid(each.resolution)
    tokens = each.spec.prefix + rows * columns
    assert work["portable"] == tokens * work["onnxruntime"] == tokens * work["openvino"] > 0


@pytest.mark.parametrize("output", ["tokens,pooled", "features:{last},pooled"])
def test_a_mean_stays_where_all_tokens_are_read_too(case: Make, output: str) -> None:
    each = case("eva02_tiny_336", "56")
    io = each.io(output.format(last=len(each.spec.blocks) - 1))
    graph = passes.run(trace(each.spec, each.sized, each.tables, io))
    fast = passes.for_onnxruntime(graph, "fp32")
    assert fast is not None
    assert [record.fired for record in fast.history if record.name == "MeanBeforeLayer"] == [False]


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> str:
    spec = dataclasses.replace(find_model("dinov3_small"), depths=(2,))
    mixed = dataclasses.replace(find_model("rope_mixed_deit_small"), depths=(2,))
    monkeypatch.setattr(zoo, "_BY_NAME", {each.short: each for each in (spec, mixed)})
    return spec.short


def export(model: str, out: Path, *options: str) -> int:
    return cli.run(["--model", model, "--weights", "random", "-q", *options, "--out", str(out)])


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("model", "rope"),
    [
        ("rope_mixed_deit_small", "dynamic"),
        pytest.param("rope_mixed_deit_small", "inputs", marks=pytest.mark.slow),
        pytest.param("dinov3_small", "dynamic", marks=pytest.mark.slow),
        pytest.param("dinov3_small", "inputs", marks=pytest.mark.slow),
    ],
)
def test_graphs_of_any_size_have_the_forms_too(model: str, rope: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert export(model, out, "--res", "96x64,64x96", "--rope", rope, "--batch", "1:1:2", "--engine", "openvino") == 0
    listed = manifest.read(out)
    forms = ["portable", "onnxruntime", "openvino", "openvino-avx2", "openvino"]
    assert [each.form for each in listed.artifacts] == forms
    assert {each.path for each in listed.artifacts if each.kind == "openvino"} == {f"model-{rope}.xml"}
    assert kinds(out / f"model-{rope}.onnxruntime.onnx")["RotaryEmbedding"] == 3
    never_named = np.random.default_rng(0).standard_normal((2, 3, 48, 64)).astype(np.float32)
    answers = []
    for backend in ("onnxruntime", "openvino"):
        loaded = load(out, backend)
        answers.append(loaded.run(never_named))
        assert backend in loaded.describe(loaded.sizes[0]) or loaded.describe(loaded.sizes[0]).endswith(".xml")
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_a_wrong_table_in_one_form_is_out_of_tolerance(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, name = (attention, "_rows") if form == "onnxruntime" else (turn_by_head, "_full_width")
    right = getattr(module, name)
    made: dict[str | None, ir.Value] = {}

    def shifted(graph: ir.Graph, table: ir.Value, *more: int) -> ir.Value:
        """Every token's angles are its neighbour's; once a table, which blocks share."""
        if table.name not in made:
            value = made[table.name] = right(graph, table, *more)
            value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1, -2), name=value.name)
        return made[table.name]

    monkeypatch.setattr(module, name, shifted)
    assert export("dinov3_small", tmp_path / "bundle", "--res", "64", "--engine", "openvino") == 3
    assert f"model-64.{form}.onnx" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("shallow")
def test_a_wrong_activation_is_out_of_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    right = activations._number
    monkeypatch.setattr(activations, "_number", lambda graph, number: right(graph, 1.001 * number))
    assert export("dinov3_small", tmp_path / "bundle", "--res", "64", "--engine", "openvino") == 3
    assert "model-64.openvino-avx2.onnx" in capfd.readouterr().err
