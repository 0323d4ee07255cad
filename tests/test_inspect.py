"""The plan report. FLOPs are PyTorch's own count, bytes are counted anew from the builder's report, header facts are
those that engines were built with here.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ropevit_export import cli, passes
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.bundle import manifest, onnx_file
from ropevit_export.errors import BackendError, BundleError, UsageError
from ropevit_export.inspect import extents, fusion, graph, kernels, plan_header, roofline
from ropevit_export.inspect.report import EngineReport, inspect
from ropevit_export.models import reference
from ropevit_export.request import EngineSpec
from ropevit_export.trace.export import trace
from ropevit_export.values import Dim
from tests.conftest import Case, outputs_of

Make = Callable[..., Case]
DIGITS = ("--model", "rope_mixed_deit_digits", "--precision", "fp16", "--engine", "tensorrt-rtx", "-q")


@pytest.fixture(scope="module")
def rtx() -> TensorRtRtx:
    try:
        return TensorRtRtx()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def static(rtx: TensorRtRtx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine for SM 89, at batch 2. Tests copy it before they change it."""
    path = tmp_path_factory.mktemp("static") / "digits"
    assert cli.run([*DIGITS, "--res", "32", "--batch", "2", "--sm", "89", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def dynamic(rtx: TensorRtRtx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose engine has a profile for each of two sizes, and a dynamic batch."""
    path = tmp_path_factory.mktemp("dynamic") / "digits"
    options = ("--rope", "dynamic", "--res", "32,32x48", "--batch", "1:2:4", "--sm", "120,89")
    assert cli.run([*DIGITS, *options, "--out", str(path)]) == 0
    return path


def only_engine(path: Path, gpu_here: str | None = "89", **options: Any) -> EngineReport:
    (engine,) = inspect(path, capability=lambda: gpu_here, **options).engines
    return engine


# FLOPs


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ("rope_mixed_deit_small", "1:2:4"),
        ("swin_rope_axial_tiny", "2"),
        pytest.param("swin_rope_axial_tiny", "1:2:4", marks=pytest.mark.slow),
    ],
)
def test_flops_are_those_that_pytorch_counts(case: Make, model: str, batch: str, tmp_path: Path) -> None:
    ours, theirs = counted(case(model, "64", "tokens"), "tokens", tmp_path, batch)
    assert ours == theirs


def test_the_last_block_of_a_class_token_model_costs_one_token(case: Make, tmp_path: Path) -> None:
    each = case("rope_mixed_deit_small", "64")
    ours, theirs = counted(each, "logits", tmp_path)
    tokens, width = 17, each.spec.dims[0]
    per_token = 2 * 10 * width**2 + 4 * tokens * width  # query, projection, MLP; scores and values
    assert theirs - ours == 2 * (tokens - 1) * per_token


def counted(each: Case, output: Any, folder: Path, batch: str = "1:2:4") -> tuple[int, int]:
    """FLOPs of our graph, at batch 2, and of the reference by PyTorch."""
    io = each.io(output, batch=Dim.parse(batch))
    made = passes.run(trace(each.spec, each.sized, each.tables, io), "fp16")
    path = folder / "model.onnx"
    onnx_file.write(made, path, onnx_file.WeightFile(path=path.with_suffix(".data")), {"model": "test"})
    shape = (2, 3, each.resolution.height, each.resolution.width)
    found = graph.read(path, {"image": shape})
    assert len(found.attentions) == len(each.spec.blocks)
    model = reference.build(each.spec, each.sized, each.resolution, outputs_of(each.spec, output))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape))
    return sum(found.flops.values()), counter.get_total_flops()


def test_flops_of_every_operator(graph_of: Callable[[str], ir.Model], tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["" : 24]>
    g (float[N,8,6,6] image, float[16,4,3,3] kernel, float[K,N] side, float[K,10] weight, float[2,3,5,8] q,
       float[2,3,7,8] k, float[2,3,7,4] v, float[2,5,24] flat_q, float[2,7,24] flat_k, float[2,7,12] flat_v)
        => (float[N,16,4,4] maps, float[N,10] sums, float[2,3,5,4] attended, float[2,5,12] flat)
    {
        [conv] maps = Conv <group: int = 2> (image, kernel)
        [gemm] sums = Gemm <transA: int = 1> (side, weight)
        [attention] attended = Attention (q, k, v)
        [flat_attention] flat = Attention <q_num_heads: int = 3, kv_num_heads: int = 3> (flat_q, flat_k, flat_v)
    }"""
    ir.save(graph_of(text), tmp_path / "m.onnx")
    shapes = {"image": (2, 8, 6, 6), "kernel": (16, 4, 3, 3), "side": (20, 2), "weight": (20, 10)}
    shapes |= {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 4)}
    found = graph.read(tmp_path / "m.onnx", shapes | {"flat_q": (2, 5, 24), "flat_k": (2, 7, 24), "flat_v": (2, 7, 12)})
    assert found.flops["conv"] == 2 * (2 * 16 * 4 * 4) * (4 * 3 * 3)
    assert found.flops["gemm"] == 2 * 2 * 20 * 10
    assert found.flops["attention"] == found.flops["flat_attention"] == 2 * 2 * 3 * 5 * 7 * (8 + 4)
    assert list(found.attentions) == ["attention", "flat_attention"]


def test_flops_behind_a_product_that_quantizes_as_it_runs(graph_of: Callable[[str], ir.Model], tmp_path: Path) -> None:
    """ONNX does not know ONNX Runtime's operator: the width of its result is that of the codes."""
    text = """<ir_version: 11, opset_import: ["" : 24, "com.microsoft" : 1]>
    g (float[N,3,8] image, int8[8,5] codes, float[5,7] weight, float scale) => (float[N,3,7] logits)
    {
        [first] inside = com.microsoft.DynamicQuantizeMatMul (image, codes, scale)
        [second] logits = MatMul (inside, weight)
    }"""
    ir.save(graph_of(text), tmp_path / "m.onnx")
    shapes = {"image": (2, 3, 8), "codes": (8, 5), "weight": (5, 7), "scale": ()}
    found = graph.read(tmp_path / "m.onnx", shapes)
    assert found.flops == {"first": 2 * 2 * 3 * 8 * 5, "second": 2 * 2 * 3 * 5 * 7}


# bytes, kernels and fusion


def test_traffic_is_what_the_builder_reports(static: Path) -> None:
    engine = only_engine(static)
    (run,) = engine.runs
    layers = json.loads((static / "model-32.rtx.engine.layers.json").read_text())["layers"]
    widths = {"Half": 2, "Float": 4, "Int64": 8, "Int32": 4, "Bool": 1}
    moved = {
        part: sum(math.prod(each["shape"]) * widths[each["dtype"]] for layer in layers for each in layer[part])
        for part in ("inputs", "constants", "outputs")
    }
    assert (run.traffic.read, run.traffic.constants, run.traffic.written) == tuple(moved.values())
    assert run.traffic.total == sum(moved.values())
    assert (run.traffic.unknown, engine.remarks) == (0, ())
    assert run.kernels == len(layers) == sum(run.types.values()) == sum(run.formats.values())
    assert run.traffic.constants > sum(each.bytes for each in manifest.read(static).artifacts[0].census) * 0.9


def test_every_block_is_counted_as_fused(static: Path, dynamic: Path) -> None:
    for path in (static, dynamic):
        for run in only_engine(path).runs:
            assert (run.attentions, run.fused_attentions, run.not_fused) == (4, 4, ())


def test_flops_of_the_kernels_are_those_of_the_graph(static: Path) -> None:
    found = inspect(static, largest=1000, gpu="RTX 4090", capability=lambda: None)
    (run,) = found.engines[0].runs
    assert sum(each.flops for each in run.largest) == run.flops == found.graphs[0].flops["32"]
    assert len(run.largest) == run.kernels
    assert run.estimate is not None
    assert sum(each.milliseconds or 0 for each in run.largest) == pytest.approx(run.estimate.milliseconds)
    times = [each.milliseconds or 0 for each in run.largest]
    assert times == sorted(times, reverse=True)


def test_a_dynamic_batch_moves_what_a_static_one_does(static: Path, dynamic: Path) -> None:
    """Sizes that the builder leaves open: at the same batch, both engines must come to about the same."""
    engine = only_engine(dynamic)
    small, large = engine.runs
    (same,) = only_engine(static).runs
    assert (small.resolution, small.batch, large.resolution) == ("32", 2, "32x48")
    assert small.flops == same.flops
    assert small.traffic.total == pytest.approx(same.traffic.total, rel=0.03)
    assert 1.3 < large.traffic.total / small.traffic.total < 1.5  # of 97 tokens and 65
    assert small.traffic.unknown == 0
    assert "the builder leaves extents" in engine.remarks[0]


def a_kernel(name: str, nodes: str, *shapes: tuple[int | str, ...]) -> kernels.Kernel:
    tensors = tuple(
        kernels.Tensor(name=f"t{index}", format="fp16", width=2, shape=shape) for index, shape in enumerate(shapes)
    )
    return kernels.Kernel(name=name, type="kgen", inputs=tensors, constants=(), outputs=(), nodes=tuple(nodes.split()))


def test_an_extent_that_several_numbers_suit_stays_open() -> None:
    shapes = {"product": {(2, 5, 8), (2, 1, 8)}, "sum": {(2, 5, 8)}}
    (one,) = extents.sized([a_kernel("k", "product", ("?", 8), (3, "?"))], shapes, batch=2)
    assert [each.bytes for each in one.inputs] == [None, None]
    first, second = extents.sized([a_kernel("k", "product", ("?", 8)), a_kernel("l", "sum", ("?", 8))], shapes, batch=2)
    assert first.inputs[0].shape == second.inputs[0].shape == (10, 8)
    assert kernels.traffic([first]).read == 160


def test_an_attention_in_pieces_is_named() -> None:
    attentions, products = {"s0": "blocks.0", "s1": "blocks.1"}, frozenset({"a0", "b0", "a1", "b1"})
    whole = [a_kernel("subgraph", "a0 s0 b0"), a_kernel("subgraph", "a1 s1 b1")]
    pieces = [whole[0], a_kernel("gemm", "a1"), a_kernel("softmax", "s1"), a_kernel("gemm", "b1")]
    assert fusion.not_fused(whole, attentions, products) == ()
    assert fusion.not_fused(pieces, attentions, products) == ("blocks.1",)
    operator = {"attention": "blocks.0"}  # one ONNX node, which TensorRT may still take to pieces
    assert fusion.not_fused([a_kernel("_gemm_mha_v2_myl0_1", "attention")], operator, frozenset(operator)) == ()
    assert fusion.not_fused([a_kernel("softmax", "attention")], operator, frozenset(operator)) == ("blocks.0",)


def test_fused_attention_is_required(
    rtx: TensorRtRtx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*DIGITS, "--res", "32", "--sm", "89", "--require-fused-attention", "--out", str(tmp_path / "digits")]
    assert cli.run(options) == 0
    shutil.rmtree(tmp_path / "digits")
    wide = ["fp32" if each == "fp16" else each for each in options]
    assert cli.run(wide) == 2
    assert "TensorRT-RTX has no fused attention for float32" in capsys.readouterr().err
    monkeypatch.setattr(TensorRtRtx, "check", lambda self, spec: None)
    assert cli.run(wide) == 1
    assert capsys.readouterr().err == (
        "error: model-32.rtx.engine: attention is not fused in 4 of 4 blocks (blocks.0, blocks.1, blocks.2, blocks.3), "
        "as --require-fused-attention asks; nothing was written.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_fused_attention_of_no_engine_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "rope_mixed_deit_digits", "--res", "32", "--require-fused-attention"]
    assert cli.run([*options, "--engine", "none", "--out", str(tmp_path / "x")]) == 2
    assert "--engine none builds none" in capsys.readouterr().err
    monkeypatch.setattr("ropevit_export.backends.select.AUTO", ())
    assert cli.run([*options, "--out", str(tmp_path / "x")]) == 1
    assert "--require-fused-attention needs an engine, but no engine was built" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# the estimate


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_arithmetic() -> None:
    gpu = roofline.Gpu(name="X", sm="89", memory=1e12, rates={"fp16": 1e14}, source="nobody")
    bound = [roofline.Work(bytes=2_000_000, flops=10**8, format="fp16"),  # 2 us and 1 us
             roofline.Work(bytes=1_000_000, flops=10**9, format="fp16"),  # 1 us and 10 us
             roofline.Work(bytes=3_000_000, flops=0, format="int64")]  # fmt: skip
    found = roofline.estimate(bound, gpu)
    assert found.milliseconds == pytest.approx(0.002 + 0.010 + 0.003)
    assert found.memory_milliseconds == pytest.approx(0.002 + 0.003)
    with pytest.raises(BundleError, match="X .SM 89. has no published rate for fp8 products"):
        roofline.seconds(roofline.Work(bytes=1, flops=1, format="fp8"), gpu)


def test_rates_are_plausible() -> None:
    known = roofline.gpus()
    assert {"H100", "A100", "L4", "RTX 4090", "RTX 5090", "Jetson AGX Orin"} <= {each.name for each in known}
    for each in known:
        assert each.source
        assert 1e11 < each.memory < 1e13
        assert each.rates["fp32"] < each.rates["fp16"] <= each.rates["int8"]
        assert ("fp8" in each.rates) == (int(each.sm) >= 89)  # it begins with Ada
    assert roofline.find_gpu("rtx4090").name == "RTX 4090"
    with pytest.raises(UsageError, match="no rates of a GPU 'RTX 9' here: there are A100, "):
        roofline.find_gpu("RTX 9")


def test_an_estimate_for_another_gpu_says_so(static: Path) -> None:
    remarks = only_engine(static, gpu="H100").remarks
    assert remarks[0].startswith("times are an estimate")
    assert remarks[1].startswith("H100 is SM 90, which this engine was not built for")
    assert len(only_engine(static, gpu="L4").remarks) == 1


# the header


@pytest.fixture(scope="module")
def make_plan(rtx: TensorRtRtx, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The smallest engine, for chosen targets."""
    folder = tmp_path_factory.mktemp("plans")
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float16[16,16] a, float16[16,16] b) => (float16[16,16] c) { c = MatMul (a, b) }"""
    ir.save(ir.from_onnx_text(text), folder / "model.onnx")

    def make(*targets: str) -> Path:
        spec = EngineSpec(runtime=rtx.runtime, precision="fp16", targets=targets, profiles=())
        path = folder / f"{'-'.join(targets)}.rtx.engine"
        rtx.build(folder / "model.onnx", spec, path)
        return path

    return make


@pytest.fixture(scope="module")
def plan(make_plan: Callable[..., Path]) -> Path:
    return make_plan("89")


def test_a_header_says_what_an_engine_was_built_for(make_plan: Callable[..., Path], rtx: TensorRtRtx) -> None:
    for targets in (*((target,) for target in rtx.all_targets), ("86", "120"), rtx.all_targets):
        header = plan_header.read(make_plan(*targets))
        assert header.targets == targets
        assert header.built_with == f"TensorRT-RTX {plan_header.installed_version('tensorrt-rtx')}"


def damaged(plan: Path, path: Path, offset: int, patch: bytes) -> Path:
    data = bytearray(plan.read_bytes())
    data[offset : offset + len(patch)] = patch
    path.write_bytes(data)
    return path


def test_what_is_no_whole_engine_is_one_sentence(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = plan.read_bytes(), tmp_path / "x.engine"
    ir.save(ir.from_onnx_text('<ir_version: 9, opset_import: ["" : 20]> g (float[1] a) => (float[1] a) {}'), path)
    onnx = path.read_bytes()
    layout = whole[:4] + struct.pack("<I", 7) + whole[8:]
    for data, sentence in (
        (b"", "is no TensorRT engine: it is empty."),
        (b"PK\x03\x04" + bytes(100), "is no TensorRT engine: it begins with b'PK\\x03\\x04'."),
        (onnx, "is no TensorRT engine: it looks like an ONNX graph."),
        (whole[:40], "is cut off: it ends after 40 bytes, within the header of its engine."),
        (b"ftrt" + bytes(8), "is cut off: it ends after 12 bytes, within the header of its engine."),
        (whole[:-1], f"is cut off: it has {len(whole) - 1} bytes, its header says {len(whole)};"),
        (whole + b"x", f"is too long: it has {len(whole) + 1} bytes, its header says {len(whole)};"),
        (layout, "is a TensorRT-RTX engine in layout 7, this reads layout 0: a newer release made it."),
    ):
        path.write_bytes(data)
        assert cli.run(["inspect", str(path)]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"error: {path} {sentence}")


def test_why_an_engine_cannot_run_here(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = plan_header.installed_version("tensorrt-rtx")
    assert only_engine(plan).obstacles == ()
    assert only_engine(plan, "90").obstacles == ("built for SM 89, this is SM 90.",)
    assert only_engine(plan, None).obstacles == ("there is no NVIDIA GPU here.",)
    for patch, age in ((b"\x09\x01\x00\x02", "newer"), (b"\x00\x01\x00\x02", "older")):
        version = ".".join(map(str, patch))
        assert only_engine(damaged(plan, tmp_path / "x", 24, patch)).obstacles == (
            f"built by TensorRT-RTX {version}, which is {age} than the {here} here: an engine runs in the release that "
            "built it.",
        )
    monkeypatch.setattr(plan_header, "installed_version", lambda runtime: None)
    assert only_engine(plan).obstacles == (f"TensorRT-RTX is not installed here; the engine needs {here}.",)


def test_a_plan_of_tensorrt_says_its_version_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_header, "installed_version", lambda runtime: "10.13.3.9")
    path = tmp_path / "model.plan"
    path.write_bytes(b"ftrt" + bytes(20) + bytes((10, 13, 3, 9)) + bytes(100))
    engine = only_engine(path, "90")
    assert (engine.runtime, engine.built_with, engine.targets) == ("tensorrt", "TensorRT 10.13.3.9", ())
    assert engine.obstacles == ()
    (newer,) = only_engine(damaged(path, path, 24, bytes((11, 0, 0, 1))), "90").obstacles
    assert "built by TensorRT 11.0.0.1, which is newer than the 10.13.3.9 here" in newer
    assert newer.endswith("unless it was built version compatible.")


def test_another_file_in_the_engines_place_is_an_error(
    static: Path, make_plan: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(static, tmp_path / "copy"))
    engine = copy / "model-32.rtx.engine"
    shutil.copy(make_plan("86"), engine)
    with pytest.raises(BundleError, match="was built for SM 86, its manifest says 89: it is another file"):
        inspect(copy)
    engine.write_bytes(b"ftrt" + bytes(20) + bytes((10, 13, 3, 9)) + bytes(100))
    with pytest.raises(BundleError, match="was built by TensorRT 10.13.3.9, its manifest says tensorrt-rtx"):
        inspect(copy)


def test_an_engine_without_a_header_is_counted_all_the_same(static: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(static, tmp_path / "copy"))
    listed = copy / "manifest.json"
    listed.write_text(listed.read_text().replace('"kind": "tensorrt-rtx"', '"kind": "openvino"'))
    (copy / "model-32.rtx.engine").write_bytes(b"anything")
    engine = only_engine(copy, None)
    assert (engine.runtime, engine.obstacles, engine.bytes) == ("openvino", (), 8)
    assert engine.runs == only_engine(static).runs


def test_a_layer_report_that_is_none_is_an_error(static: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(static, tmp_path / "copy"))
    layers = copy / "model-32.rtx.engine.layers.json"
    layers.write_text('{"layers": [{}]}')
    with pytest.raises(BundleError, match="is not a layer report of this package: layers.0.name: Field required"):
        inspect(copy)
    found = json.loads((static / "model-32.rtx.engine.layers.json").read_text())
    found["layers"][0]["name"] = "k_myl1_0"
    layers.write_text(json.dumps(found))
    with pytest.raises(BundleError, match="has kernels for 2 profiles, its manifest names 1"):
        inspect(copy)
    layers.unlink()
    with pytest.raises(BundleError, match="can't read the layer report .*: No such file"):
        inspect(copy)


def test_the_gpu_is_asked_for_its_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan_header.gpu_capability() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100, 580.1, 9.0\necho NVIDIA L4, 580.1, 8.9\n")
    tool.chmod(0o755)
    assert plan_header.gpu_capability() == "90"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert plan_header.gpu_capability() is None


# the verb


def test_the_report_in_words_and_for_machines(
    static: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100, 580.1, 9.0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.run(["inspect", str(static), "--gpu", "RTX 4090"]) == 0
    out = capsys.readouterr().out
    for part in ("can't run here: built for SM 89, this is SM 90.", "4 of 4", "estimate for RTX 4090", "node_matmul"):
        assert part in out
    assert cli.run(["inspect", str(static), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"path", "graphs", "engines", "sha256"}
    (run,) = found["engines"][0]["runs"]
    assert set(run) >= {"kernels", "fused_attentions", "attentions", "traffic", "flops", "estimate", "largest"}
    assert set(run["traffic"]) == {"read", "constants", "written", "unknown"}
    assert set(run["largest"][0]) == {"name", "type", "format", "bytes", "flops", "milliseconds", "nodes"}


def test_a_bundle_without_engines_reports_its_graphs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(bundle)]) == 0
    assert "model-32.onnx" in capsys.readouterr().out
    assert cli.run(["inspect", str(bundle), "--gpu", "Voodoo 2"]) == 2
    assert cli.run(["inspect", str(bundle / "nothing")]) == 1
