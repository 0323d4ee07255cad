from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ropevit_export import passes
from ropevit_export.backends import layer_report
from ropevit_export.backends.onnxruntime import PROVIDERS, OnnxRuntime, _reason
from ropevit_export.backends.openvino import OpenVino
from ropevit_export.backends.select import BUILDERS, CHOICES, builders, runner
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.bundle import onnx_file
from ropevit_export.cli.options import ENGINES
from ropevit_export.errors import BackendError, UsageError
from ropevit_export.inspect import fusion, graph, kernels
from ropevit_export.models import reference
from ropevit_export.request import EngineSpec, Request
from ropevit_export.trace.export import export_plain, trace, trace_dynamic, trace_inputs
from ropevit_export.values import Dim, IoSpec, Plan, Precision, Profile, Resolution, RopeMode
from tests.conftest import Case

Make = Callable[..., Case]
# One kernel as TensorRT-RTX 1.7 logs it.
LOGGED = (
    "Layers:\n"
    "Name: __myl_FcAdd_myl0_3, LayerType: runtime_fusion, Inputs: [ { Name: a, Dimensions: [1,577,384], Strides: "
    "[221568,384,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { "
    "Name: b, Dimensions: [1,1,1152], Strides: [1152,1152,1], StrideOrder: [2,1,0], Datatype: Float, Format: "
    "(Arbitrary) Format with stride order = [1,2,0] }, { Name: c, Dimensions: [], Strides: [], StrideOrder: [], "
    "Datatype: Half, Format: (Linear) Row major linear format }], "
    "Outputs: [ { Name: d, Dimensions: [1,577,1152], Strides: "
    "[664704,1152,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , "
    "StreamId: 0, Metadata: [ONNX Layer: node_MatMul_30][ONNX Layer: node_linear]\n"
)


def test_a_logged_kernel_is_read_whole() -> None:
    (layer,) = layer_report.parse(LOGGED)
    assert (layer["name"], layer["type"]) == ("__myl_FcAdd_myl0_3", "runtime_fusion")
    assert layer["onnx_nodes"] == ["node_MatMul_30", "node_linear"]
    constants = layer["constants"]
    assert isinstance(constants, list)
    assert [(each["name"], each["shape"], each["dtype"]) for each in constants] == [
        ("b", [1, 1, 1152], "Float"),
        ("c", [], "Half"),
    ]
    assert constants[0]["format"] == "(Arbitrary) Format with stride order = [1,2,0]"


def test_a_report_in_another_form_is_an_error() -> None:
    with pytest.raises(BackendError, match="tensors in an unknown form"):
        layer_report.parse(LOGGED.replace("Datatype", "DataType"))
    with pytest.raises(BackendError, match="layer report without Outputs"):
        layer_report.parse(LOGGED.replace("Outputs", "Results"))
    with pytest.raises(BackendError, match="the builder logged no layers"):
        layer_report.parse("Layers:\n")


def test_the_command_line_offers_the_builders_there_are() -> None:
    assert ENGINES == CHOICES


def test_none_excludes_other_engines() -> None:
    with pytest.raises(UsageError, match="--engine none excludes the others, given: none, tensorrt-rtx"):
        builders(("none", "tensorrt-rtx"))
    assert builders(("none",)) == ([], None)


def test_auto_says_why_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> TensorRtRtx:
        raise BackendError("it is not installed")

    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setitem(BUILDERS, name, missing)
    assert builders(("auto",)) == ([], "no engine was built: it is not installed; it is not installed")
    with pytest.raises(BackendError, match="it is not installed"):
        builders(("tensorrt-rtx",))


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        (
            "onnxruntime-cuda",
            "asked ONNX Runtime for CUDAExecutionProvider, it loaded CPUExecutionProvider: "
            "lib(cuda|cu.*: pip install 'onnxruntime-gpu.cuda,cudnn.')",
        ),
        ("onnxruntime-tensorrt", "it loaded CPUExecutionProvider: lib(nvinfer.*: pip install 'tensorrt-cu13|cu)"),
        ("onnxruntime-tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_provider_that_onnxruntime_drops_is_an_error_with_its_reason(
    graph_file: Path, backend: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if PROVIDERS[backend].name not in onnxruntime.get_available_providers() and not PROVIDERS[backend].plugin:
        pytest.skip("this build of ONNX Runtime is for CPUs")
    with pytest.raises(BackendError, match=sentence):
        runner(backend, graph_file, "fp32")
    assert capfd.readouterr() == ("", "")  # its own words, in colour, are in the sentence


def test_a_provider_that_this_build_lacks_names_the_package_that_has_it(graph_file: Path) -> None:
    if PROVIDERS["onnxruntime-openvino"].name in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has OpenVINO")
    with pytest.raises(
        BackendError, match="has no OpenVINOExecutionProvider, only .*CPUExecution.*: pip install onnxruntime-openvino"
    ):
        runner("onnxruntime-openvino", graph_file, "fp32")
    with pytest.raises(BackendError, match="this ONNX Runtime .* has no TpuExecutionProvider, only .*[.]$"):
        OnnxRuntime(graph_file, ["TpuExecutionProvider"])


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("FAIL : Failed to load library /a/b.so with error: libcuda.so.1: gone\n\x1b[m", ": there is no NVIDIA driver"),
        ("with error: libnvinfer.so.10: gone", ": libnvinfer.so.10: gone: pip install 'tensorrt-cu13==10.*'"),
        ("with error: libcublasLt.so.13: gone", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("\x1b[1;31m2026 [E:onnxruntime:Default, a.cc:1 Create] it is on fire\n\x1b[m", ": it is on fire"),
        ("2026 [W:onnxruntime:Default, a.cc:1 Create] it is warm\n", ""),
    ],
)  # fmt: skip
def test_the_reason_is_picked_from_what_onnxruntime_prints(printed: str, reason: str) -> None:
    found = _reason(printed)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_wrong_input_is_an_error_of_the_runtime(graph_file: Path) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed to run: "):
        OnnxRuntime(graph_file).run({"image": np.zeros((1, 3, 8, 8), np.float32)})["logits"]


def test_a_runtime_says_what_it_computes_in(graph_file: Path) -> None:
    assert OnnxRuntime(graph_file).describe.endswith("CPUExecutionProvider, float32")
    assert "computed mostly in float32: no proof against overflow" in OnnxRuntime(graph_file, precision="fp16").describe


def test_a_file_that_is_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("not a graph")
    with pytest.raises(BackendError, match="ONNX Runtime refuses model.onnx"):
        OnnxRuntime(tmp_path / "model.onnx")


def test_openvino_computes_in_what_was_asked(graph_file: Path) -> None:
    pytest.importorskip("openvino")
    for precision in ("fp32", "fp16"):  # left to itself it takes bfloat16 where the CPU has it
        assert "CPU, computed in f32" in OpenVino(graph_file, precision=precision).describe


def test_openvino_does_not_run_without_an_input(graph_file: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(BackendError, match="OpenVINO failed to run: no image was given"):
        OpenVino(graph_file).run({})["logits"]


def test_what_openvino_cannot_do_is_an_error(graph_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "other.onnx").write_text("not a graph")
    with pytest.raises(BackendError, match="OpenVINO can't read other.onnx: "):
        OpenVino(tmp_path / "other.onnx")
    with pytest.raises(BackendError, match="OpenVINO refuses model.onnx: "):
        OpenVino(graph_file, "NPU9")
    with pytest.raises(BackendError, match="OpenVINO failed to run: "):
        OpenVino(graph_file).run({"image": np.zeros((1, 3, 8, 8), np.float32)})["logits"]


def test_a_backend_that_does_not_exist_is_an_error(graph_file: Path) -> None:
    with pytest.raises(BackendError, match="no backend 'tvm' runs a bundle: there are onnxruntime, .*openvino"):
        runner("tvm", graph_file, "fp32")


def written(case: Case, path: Path, precision: Precision, batch: Dim, rope: RopeMode = "baked") -> IoSpec:
    request = Request(model=case.spec, resolutions=(case.resolution,), batch=batch, rope=rope)
    (io,) = request.graphs()
    if rope == "baked":
        traced = trace(case.spec, case.sized, case.tables, io)
    elif rope == "dynamic":
        traced = trace_dynamic(case.spec, case.weights, case.factors(case.resolution), io)
    else:
        traced = trace_inputs(case.spec, case.weights, io)
    weights = onnx_file.WeightFile(path=path.with_suffix(".data"))
    facts = onnx_file.metadata(case.spec, rope, request.preprocess, {})
    onnx_file.write(passes.run(traced, precision), path, weights, facts)
    return io


@pytest.fixture
def graph_file(case: Make, tmp_path: Path) -> Path:
    written(case("rope_axial_deit_small", "64"), tmp_path / "model.onnx", "fp32", Dim(min=1, opt=1, max=1))
    return tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def rtx() -> TensorRtRtx:
    try:
        return TensorRtRtx()
    except BackendError as error:
        pytest.skip(str(error))


def build(
    rtx: TensorRtRtx,
    path: Path,
    precision: Precision,
    *,
    targets: tuple[str, ...] = (),
    profiles: tuple[Profile, ...] = (),
) -> Plan:
    spec = EngineSpec(runtime=rtx.runtime, precision=precision, targets=targets, profiles=profiles)
    return rtx.build(path, spec, path.with_suffix(rtx.suffix))


@pytest.mark.parametrize(
    ("model", "batch", "targets"),
    [
        ("rope_mixed_deit_small", "1:2:4", ()),
        ("swin_rope_axial_tiny", "1", ("89",)),
        pytest.param("swin_tiny", "1", ("89",), marks=pytest.mark.again),
        pytest.param("swin_rope_axial_tiny", "1:2:4", (), marks=pytest.mark.slow),
        pytest.param("swin_tiny", "1:2:4", (), marks=pytest.mark.slow),
    ],
)
def test_half_precision_attention_is_fused_in_every_block(
    case: Make, model: str, batch: str, targets: tuple[str, ...], rtx: TensorRtRtx, tmp_path: Path
) -> None:
    each = case(model, "128")
    io = written(each, tmp_path / "model.onnx", "fp16", Dim.parse(batch))
    profiles = () if io.is_static else (Profile.of(io, io.resolution, each.spec.extents(io.resolution)),)
    plan = build(rtx, tmp_path / "model.onnx", "fp16", targets=targets, profiles=profiles)
    fused = [layer for layer in plan.layers if "mha" in str(layer["name"])]
    assert len(fused) == len(each.spec.blocks)
    assert plan.targets == (targets or tuple(target for target in rtx.all_targets if target != "75"))
    assert plan.files[0].stat().st_size > sum(tensor.numel() * 2 for tensor in each.sized.tensors.values()) * 0.9


@pytest.mark.parametrize("rope", ["dynamic", pytest.param("inputs", marks=pytest.mark.slow)])
def test_every_profile_of_one_engine_has_its_own_fused_attention(
    case: Make, rope: RopeMode, rtx: TensorRtRtx, tmp_path: Path
) -> None:
    each = case("rope_mixed_ape_deit_small", "256x448")
    io = written(each, tmp_path / "model.onnx", "fp16", Dim(min=1, opt=2, max=8), rope)
    sizes = [Resolution.parse(size) for size in ("224", "112x256")]
    profiles = tuple(Profile.of(io, size, each.spec.extents(size)) for size in sizes)
    plan = build(rtx, tmp_path / "model.onnx", "fp16", targets=("89",), profiles=profiles)
    fused = [layer for layer in plan.layers if "mha" in str(layer["name"])]
    assert len(fused) == len(each.spec.blocks) * len(sizes)


@pytest.mark.parametrize(
    "model",
    ["rope_mixed_deit_small", *(pytest.param(f"dinov3_small{end}", marks=pytest.mark.slow) for end in ("", "_plus"))],
)
def test_half_precision_moves_less_than_the_plain_export(
    case: Make, model: str, rtx: TensorRtRtx, tmp_path: Path
) -> None:
    each = case(model, "256", "pooled")
    ours, theirs = tmp_path / "ours.onnx", tmp_path / "plain.onnx"
    written(each, ours, "fp16", Dim(min=1, opt=1, max=1))
    module = reference.build(each.spec, each.sized, each.resolution, each.io("pooled").outputs).half()
    export_plain(module, each.images[:1], theirs, ["pooled"])
    moved = []
    for path in (ours, theirs):
        found = kernels.of_layers(build(rtx, path, "fp16", targets=("89",)).layers)
        nodes = graph.named(path)
        assert len(nodes.attentions) == len(each.spec.blocks)
        assert fusion.not_fused(found, nodes.attentions, nodes.products) == ()
        moved.append(kernels.traffic(found))
    assert [each.unknown for each in moved] == [0, 0]
    assert moved[0].total < 0.95 * moved[1].total


def test_an_engine_built_twice_is_the_same(case: Make, rtx: TensorRtRtx, tmp_path: Path) -> None:
    written(case("rope_axial_deit_small", "64"), tmp_path / "model.onnx", "fp32", Dim(min=1, opt=1, max=1))
    written_bytes = []
    for _ in range(2):
        plan = build(rtx, tmp_path / "model.onnx", "fp32", targets=("89",))
        written_bytes.append(plan.files[0].read_bytes())
    assert written_bytes[0] == written_bytes[1]
    assert (plan.targets, plan.remark) == (("89",), None)


def test_targets_that_cannot_be_built_are_refused_before_work(rtx: TensorRtRtx) -> None:
    with pytest.raises(UsageError, match="can't build for SM 90; it knows 75, 80"):
        rtx.check(EngineSpec(runtime=rtx.runtime, precision="fp16", targets=("90",), profiles=()))
    with pytest.raises(UsageError, match="SM 75 .Turing. has no float32 matrix product"):
        rtx.check(EngineSpec(runtime=rtx.runtime, precision="fp32", targets=("75", "89"), profiles=()))


def test_what_the_builder_cannot_read_is_its_own_words(rtx: TensorRtRtx, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="TensorRT-RTX can't read model.onnx"):
        build(rtx, tmp_path / "model.onnx", "fp32")
