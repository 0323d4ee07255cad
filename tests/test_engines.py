"""Builders, their options and the cache of what they built."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ropevit_export import cli, export, find_model
from ropevit_export.backends import cache, layer_report
from ropevit_export.backends.onnxruntime import OnnxRuntime
from ropevit_export.backends.openvino import OpenVinoBuilder
from ropevit_export.backends.select import builders
from ropevit_export.backends.tensorrt import TensorRt
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.bundle import manifest
from ropevit_export.errors import BackendError, ParityError, UsageError
from ropevit_export.machine import gpu, hardware
from ropevit_export.machine.gpu import Gpu
from ropevit_export.request import EngineOptions, EngineSpec, Request, TimingCache
from ropevit_export.values import Plan, Precision, Profile, Resolution
from tests import counting_builder
from tests.conftest import HAS_BFLOAT16
from tests.counting_builder import CountingBuilder
from tests.fakes import tensorrt as fake

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

DIGITS = ["--model", "rope_mixed_deit_digits", "--res", "32"]
HOPPER = Gpu(name="NVIDIA H100", driver="580.1", compute_capability="90")
ALL = EngineOptions(workspace=64, version_compatible=True, strip_weights=True, refit=True, tf32=True)
Use = Callable[..., ModuleType]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Put a TensorRT of a release, and a GPU, in place."""

    def put(version: str = "11.1.0", device: Gpu | None = HOPPER, **how: Any) -> ModuleType:
        module = fake.module(version, **how)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(gpu, "present", lambda: device)
        return module

    return put


def spec(precision: Precision = "fp32", targets: tuple[str, ...] = (), **options: Any) -> EngineSpec:
    return EngineSpec(
        runtime="any", precision=precision, targets=targets, profiles=(), options=EngineOptions(**options)
    )


def set_flags(trt: ModuleType) -> set[str]:
    return {call[1].name for call in trt.calls if call[0] == "set_flag"}


@pytest.mark.parametrize("version", ["10.13.0", "10.14.1", "11.1.0"])
def test_tensorrt_is_asked_for_names_that_the_release_has(use: Use, version: str, tmp_path: Path) -> None:
    trt = use(version)
    wanted = EngineSpec(
        runtime="tensorrt",
        precision="fp16",
        targets=(),
        profiles=(Profile(resolution=Resolution.parse("32"), shapes={"image": ((1, 3), (2, 3), (4, 3))}),),
        options=ALL,
    )
    plan = TensorRt().build(tmp_path / "model.onnx", wanted, tmp_path / "model.engine")
    assert set_flags(trt) == {"TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT"}
    assert ("set_memory_pool_limit", trt.MemoryPoolType.WORKSPACE, 64 << 20) in trt.calls
    assert ("set_shape", "image", (1, 3), (2, 3), (4, 3)) in trt.calls
    strongly = 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED if version.startswith("10") else 0
    assert ("create_network", strongly) in trt.calls
    assert (plan.targets, plan.files) == (("90",), (tmp_path / "model.engine",))
    assert plan.built_with == f"tensorrt {version}, NVIDIA H100 (SM 90, driver 580.1), TF32 on"
    (layer,) = plan.layers
    assert layer["onnx_nodes"] == ["node_matmul", "node_add"]
    assert [each["dtype"] for side in ("inputs", "outputs") for each in layer[side]] == ["Float", "Float"]  # type: ignore[attr-defined]


def test_a_flag_that_was_removed_is_an_error_of_the_stand_in(use: Use) -> None:
    assert use("10.13.0").BuilderFlag.FP16 == 0
    with pytest.raises(AttributeError, match="FP16"):
        use("11.1.0").BuilderFlag.FP16  # noqa: B018 - the access is what is tested
    config = use("11.1.0").Builder(None).create_builder_config()
    with pytest.raises(AttributeError, match="IBuilderConfig has no int8_calibrator in this release"):
        config.int8_calibrator = None


def test_the_stand_in_has_nothing_that_the_real_sister_lacks() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    assert {"TF32", "STRIP_PLAN", "REFIT_IDENTICAL", "ERROR_ON_TIMING_CACHE_MISS"} <= set(
        real.BuilderFlag.__members__
    ) & set(fake.NAMES["11"]["BuilderFlag"])
    assert set(fake.NAMES["11"]["IBuilderConfig"]) <= set(dir(real.IBuilderConfig))


def test_stripped_weights_alone_may_only_come_back_the_same(use: Use, tmp_path: Path) -> None:
    trt = use()
    TensorRt().build(tmp_path / "model.onnx", spec(strip_weights=True), tmp_path / "model.engine")
    assert set_flags(trt) == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    assert ("clear_flag", trt.BuilderFlag.TF32) in trt.calls  # on by default


@pytest.mark.parametrize(
    ("version", "device", "reason"),
    [
        ("11.1.0", None, "TensorRT builds only where a GPU is"),
        ("10.12.0", HOPPER, "TensorRT 10.12.0 is installed, needed 10.13 or newer"),
    ],
)
def test_tensorrt_that_cannot_be_used_says_why(use: Use, version: str, device: Gpu | None, reason: str) -> None:
    use(version, device)
    with pytest.raises(BackendError, match=reason):
        TensorRt()


def test_auto_takes_tensorrt_where_it_and_a_gpu_are(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use()
    assert [maker.runtime for maker in builders(("auto",))[0]] == ["tensorrt"]
    use(device=None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    made, remark = builders(("auto",))
    assert made == []
    assert "nvidia-smi finds none here" in str(remark)
    assert "TensorRT-RTX can't be imported" in str(remark)


def test_tensorrt_builds_for_the_gpu_it_runs_on(use: Use) -> None:
    use()
    with pytest.raises(BackendError, match=r"NVIDIA H100 \(SM 90, driver 580.1\), but --sm asks for 89: build there"):
        TensorRt().check(spec(targets=("89",)))
    wide = spec(targets=("80", "120"), hardware_compatibility="ampere-plus")
    TensorRt().check(wide)
    assert TensorRt().targets(wide) == ("80", "120")
    with pytest.raises(BackendError, match="asks for 75"):
        TensorRt().check(spec(targets=("75",), hardware_compatibility="ampere-plus"))
    use(device=Gpu(name="T4", driver="1", compute_capability="75"))
    with pytest.raises(BackendError, match="T4 .SM 75, driver 1. has no bf16: it begins with SM 80"):
        TensorRt().check(spec("bf16"))


def test_a_failed_build_says_what_the_builder_said(use: Use, tmp_path: Path) -> None:
    use(fails="[myelin] no kernel for node_softmax")
    with pytest.raises(BackendError, match="TensorRT failed to build model.onnx: .myelin. no kernel for node_softmax"):
        TensorRt().build(tmp_path / "model.onnx", spec(), tmp_path / "model.engine")
    assert not (tmp_path / "model.engine").exists()


def test_a_timing_cache_grows_unless_it_is_pinned(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "h100.timing"
    trt = use(stored_cache=b"timed once")
    open_ended = spec(timing_cache=TimingCache.parse(str(path)))
    plan = TensorRt().build(tmp_path / "m.onnx", open_ended, tmp_path / "m.engine")
    assert "pin a --timing-cache by its SHA-256" in str(plan.remark)
    assert path.read_bytes() == b"timed once"
    assert list(path.parent.iterdir()) == [path]
    assert "ERROR_ON_TIMING_CACHE_MISS" not in set_flags(trt)

    trt = use(stored_cache=b"timed twice")
    pinned = spec(timing_cache=TimingCache.parse(f"{path}@{hashlib.sha256(b'timed once').hexdigest()}"))
    plan = TensorRt().build(tmp_path / "m.onnx", pinned, tmp_path / "m.engine")
    assert plan.remark is None
    assert ("set_timing_cache", b"timed once", False) in trt.calls
    assert "ERROR_ON_TIMING_CACHE_MISS" in set_flags(trt)
    assert path.read_bytes() == b"timed once"

    path.write_bytes(b"something else")
    with pytest.raises(BackendError, match="was pinned as .*: it has changed"):
        TensorRt().check(pinned)
    path.unlink()
    with pytest.raises(BackendError, match="is pinned by its hash, but there is no such file"):
        TensorRt().check(pinned)


def test_a_timing_cache_of_another_device_is_refused(use: Use, tmp_path: Path) -> None:
    use()
    (tmp_path / "cache").write_bytes(b"of another GPU")
    with pytest.raises(BackendError, match="is of another GPU, CUDA or TensorRT than tensorrt 11.1.0, NVIDIA H100"):
        TensorRt().build(
            tmp_path / "m.onnx", spec(timing_cache=TimingCache.parse(str(tmp_path / "cache"))), tmp_path / "m.engine"
        )
    with pytest.raises(UsageError, match="neither FILE nor FILE@SHA256"):
        TimingCache.parse("cache@123")


def test_inspectors_in_an_unknown_form_are_errors() -> None:
    with pytest.raises(BackendError, match="lists names only: was profiling verbosity not DETAILED"):
        layer_report.from_json(json.dumps({"Layers": ["gemm_0"]}))
    with pytest.raises(BackendError, match="unknown form"):
        layer_report.from_json(json.dumps({"Layers": [{"Name": "gemm_0"}]}))
    with pytest.raises(BackendError, match="unknown form"):
        layer_report.from_json("no JSON")


class StandIn:
    """In place of an engine on a GPU: takes the plan that was built, and answers as its graph does, off by a factor."""

    def __init__(self, plan: Path, precision: Precision, factor: float) -> None:
        assert plan.read_bytes().startswith(b"ftrt")
        self._graph, self._factor = OnnxRuntime(plan.with_suffix(".onnx"), precision=precision), factor
        self.describe = f"stand-in for {plan.name}"

    def run(self, feeds: Arrays) -> dict[str, Array]:
        return {name: answer * np.float32(self._factor) for name, answer in self._graph.run(feeds).items()}


def built_by_tensorrt(use: Use, monkeypatch: pytest.MonkeyPatch, factor: float) -> Request:
    use()
    monkeypatch.setattr(TensorRt, "runner", lambda self, path, precision: StandIn(path, precision, factor))
    return Request(
        model=find_model("rope_mixed_deit_digits"),
        resolutions=(Resolution.parse("32"),),
        engines=("tensorrt",),
        engine_options=EngineOptions(workspace=64),
    )


def test_a_built_engine_is_compared_by_its_own_answers(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = built_by_tensorrt(use, monkeypatch, factor=1.1)
    with pytest.raises(ParityError, match=r"^model-32\.engine"):
        export(wrong, out=tmp_path / "out")
    assert "stand-in for model-32.engine" in (tmp_path / "out.out-of-tolerance.md").read_text()
    assert not (tmp_path / "out").exists()


def test_a_tensorrt_engine_in_a_bundle_is_listed_with_how_it_was_built_and_compared(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = built_by_tensorrt(use, monkeypatch, factor=1.0)
    written = export(request, out=tmp_path / "out").manifest
    engine = written.artifacts[-1]
    assert (engine.kind, engine.path, engine.targets) == ("tensorrt", "model-32.engine", ("90",))
    assert engine.options == {"workspace": 64}
    assert "a second build can differ" in str(engine.remark)
    assert {each.format: each.products for each in engine.census} == {"fp32": 1}
    assert [each.artifact for each in written.parity] == [
        "model-32.onnx",
        "model-32.onnxruntime.onnx",
        "model-32.engine",
    ]
    assert written.parity[-1].runtime == "stand-in for model-32.engine"


def test_options_that_no_engine_uses_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "-q"]
    assert cli.run([*DIGITS, "--engine", "openvino", "--tf32", *out]) == 2
    assert "--tf32 is of no use to the engine asked for, openvino: leave it out" in capsys.readouterr().err
    assert cli.run([*DIGITS, "--engine", "none", "--sm", "89", "--refit", *out]) == 2
    assert "--sm, --refit is for engines, but --engine none builds none" in capsys.readouterr().err
    assert cli.run([*DIGITS, "--engine", "tensorrt-rtx", "--timing-cache", "x@y", *out]) == 2
    assert "neither FILE nor FILE@SHA256" in capsys.readouterr().err


def test_tensorrt_rtx_needs_a_gpu_to_strip_weights(use: Use) -> None:
    pytest.importorskip("tensorrt_rtx")
    use(device=None)
    with pytest.raises(BackendError, match="stripped and refittable plans only where a GPU is"):
        TensorRtRtx().check(spec(strip_weights=True))


def test_tensorrt_rtx_takes_the_options_that_need_no_gpu(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    arguments = ["--engine", "tensorrt-rtx", "--sm", "89", "--precision", "fp16", "--version-compatible", "--tf32"]
    assert cli.run([*DIGITS, *arguments, "--workspace", "256", "-q", "--out", str(tmp_path / "out")]) == 0
    engine = manifest.read(tmp_path / "out").artifacts[-1]
    assert engine.options == {"workspace": 256, "version_compatible": True, "tf32": True}
    assert engine.built_with.endswith("TF32 on")
    assert engine.remark is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_openvino_ir_is_checked_where_it_was_built(precision: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    calib = ["--calib", "digits"] if precision == "int8" else []
    out = tmp_path / "out"
    arguments = ["--precision", precision, *calib, "--engine", "openvino", "-q", "--out", str(out)]
    code = cli.run([*DIGITS, *arguments])
    if precision == "bf16" and not HAS_BFLOAT16:
        assert code == 1  # such a CPU computes in float32, which is not what was asked for
        return
    if precision == "int8" and hardware.cuts_8_bit_sums() and code == 3:
        return  # and such a one may cut sums too far: the bundle is refused
    assert code == 0
    listed = manifest.read(out)
    (engine,) = [each for each in listed.artifacts if each.kind == "openvino"]
    assert [each.path for each in engine.files if each.kind == "part"] == ["model-32.bin"]
    assert [each.passed for each in listed.parity if each.artifact == "model-32.xml"] == [True]
    products = {each.format: each.products for each in engine.census if each.products}
    # What the CPU made of it: the widest that the policy of a precision allows.
    assert set(products) == {"fp32": {"fp32"}, "fp16": {"fp32"}, "bf16": {"bf16"}, "int8": {"fp32", "int8"}}[precision]
    moved = shutil.copytree(out, tmp_path / "moved")
    assert openvino.Core().read_model(moved / "model-32.xml").inputs[0].get_any_name() == "image"


def test_openvino_that_reads_no_graph_says_so(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="OpenVINO failed to build model.onnx: "):
        OpenVinoBuilder().build(tmp_path / "model.onnx", spec(), tmp_path / "model.xml")


@pytest.fixture
def graph(tmp_path: Path) -> tuple[Path, Path]:
    onnx, weights = tmp_path / "model.onnx", tmp_path / "weights.data"
    onnx.write_bytes(b"graph")
    weights.write_bytes(b"weights")
    return onnx, weights


def test_the_cache_gives_what_was_built_from_the_same_bytes(graph: tuple[Path, Path], tmp_path: Path) -> None:
    _, weights = graph
    maker, kept = CountingBuilder(), tmp_path / "cache"

    def build(name: str, wanted: EngineSpec) -> Plan:
        return cache.build(maker, graph, wanted, tmp_path / name, kept)

    first = build("a.slow", spec())
    second = build("b.slow", spec())
    assert maker.built == 1
    assert [file.name for file in second.files] == ["b.slow", "b.part"]
    assert [one.read_bytes() for one in first.files] == [other.read_bytes() for other in second.files]
    assert (first.layers, first.targets, first.built_with) == (second.layers, second.targets, second.built_with)

    build("c.slow", spec(targets=("120",)))
    build("c.slow", spec("fp16"))
    build("c.slow", spec(tf32=True))
    maker.version = "slow 2"
    build("c.slow", spec())
    weights.write_bytes(b"other")
    build("c.slow", spec())
    assert maker.built == 6


def test_a_damaged_entry_is_built_again(graph: tuple[Path, Path], tmp_path: Path) -> None:
    maker, kept = CountingBuilder(), tmp_path / "cache"
    cache.build(maker, graph, spec(), tmp_path / "a.slow", kept)
    (entry,) = kept.iterdir()
    (entry / "engine.part").write_bytes(b"trap")
    cache.build(maker, graph, spec(), tmp_path / "a.slow", kept)
    assert maker.built == 2
    assert (tmp_path / "a.part").read_bytes() == b"part"
    cache.build(maker, graph, spec(), tmp_path / "a.slow", kept)
    assert maker.built == 2


def test_several_builders_share_a_cache(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"model-{index}.onnx").write_bytes(np.random.default_rng(index).bytes(200_000))
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    workers = [
        context.Process(target=counting_builder.build_many, args=(tmp_path, number, start)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 20  # nothing half-written beside the entries


def test_the_command_line_fills_and_uses_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx")
    arguments = [*DIGITS, "--engine", "tensorrt-rtx", "--sm", "89", "--cache", str(tmp_path / "cache")]
    for name in ("first", "second"):
        assert cli.run([*arguments, "--out", str(tmp_path / name)]) == 0
    engines = [(tmp_path / name / "model-32.rtx.engine").read_bytes() for name in ("first", "second")]
    assert engines[0] == engines[1]
    assert "model-32.rtx.engine: taken from the build cache" in caplog.text
