"""`bench`: the arithmetic by hand, the order of turns with workers that only count, the whole with real ones."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from ropevit_export import cli
from ropevit_export.backends.select import BUILDERS, RUNNERS
from ropevit_export.bundle import manifest
from ropevit_export.cli import options
from ropevit_export.errors import BackendError, TraceError, UsageError
from ropevit_export.machine import hardware
from ropevit_export.models import reference
from ropevit_export.request import EngineSpec
from ropevit_export.trace.export import export_plain
from ropevit_export.values import Plan, Precision, Resolution, Weights
from ropevit_export.verbs import bench, peers, plot
from ropevit_export.verbs.bench import Contender, Timing, contenders
from tests.conftest import Case, outputs_of

HERE = Path("bundles")


def test_every_bundle_runs_on_every_backend_and_peers_follow() -> None:
    made = contenders([HERE / "a", HERE / "b"], ["eager", "plain"], ["onnxruntime", "openvino"])
    assert [each.name for each in made] == [
        "a, onnxruntime",
        "b, onnxruntime",
        "a, openvino",
        "b, openvino",
        "eager",
        "plain, onnxruntime",
        "plain, openvino",
    ]
    assert all(each.bundle == HERE / "a" for each in made if each.peer)


def test_contenders_of_the_same_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two contenders are called a: rename a folder"):
        contenders([HERE / "a", HERE / "there" / "a"], [], ["onnxruntime"])


def test_the_command_line_offers_the_runners_there_are() -> None:
    assert tuple(RUNNERS) == options.BACKENDS
    assert tuple(peers.PEERS) == options.PEERS


def test_a_peer_of_one_runtime_wants_its_backend() -> None:
    (bundle, made) = contenders([HERE / "a"], ["static-int8"], ["onnxruntime"])
    assert (bundle.name, made.name, made.backend) == ("a", "static-int8", "onnxruntime")
    with pytest.raises(UsageError, match="--peer nncf-int8 runs on openvino: add --backend openvino"):
        contenders([HERE / "a"], ["nncf-int8"], ["onnxruntime"])


def test_a_ratio_is_of_medians_and_its_spread_is_of_rounds() -> None:
    of_four = Timing(
        contender="b",
        runtime="",
        transfers="none",
        batch=4,
        milliseconds=(20.0, 30.0, 40.0, 30.0, 60.0),
        first_milliseconds=(10.0, 20.0, 20.0, 10.0, 40.0),
        peak_mb=None,
    )
    s = of_four.summary()
    assert (s["p50_ms"], s["ratio"], s["images_per_second"]) == (30.0, 1.5, 4 * 1000 / 30)
    assert (s["ratio_q25"], s["ratio_q75"]) == (1.5, 2.0)  # of 1.5, 1.5, 2, 2, 3
    assert s["p90_ms"] == pytest.approx(52.0)


def timing(name: str, *milliseconds: float, batch: int = 1) -> Timing:
    return Timing(
        contender=name,
        runtime="counted",
        transfers="none",
        batch=batch,
        milliseconds=milliseconds,
        first_milliseconds=(10.0,) * len(milliseconds),
        peak_mb=None,
    )


@pytest.fixture
def result() -> bench.Benchmark:
    """Of two contenders, the first the faster, at two batch sizes."""
    timings = [timing(name, 10.0 * scale, 12.0 * scale, 300.0, batch=batch)
               for batch in (1, 8) for name, scale in (("ours", 1), ("eager & $co", 20))]  # fmt: skip
    return bench.Benchmark(resolution=Resolution.parse("32"), rounds=3, machine={"cores": 2}, timings=tuple(timings))


def test_a_picture_shows_every_round_of_every_contender(
    result: bench.Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    colors = pytest.importorskip("matplotlib.colors")
    figures: list[Any] = []
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot.draw(result, tmp_path / "bench.png")
    panels = {axes.get_xlabel(): axes for axes in figures[0].axes}
    latencies = [f"batch {batch}: milliseconds, logarithmic, less is better" for batch in (1, 8)]
    assert panels.keys() == {*latencies, "batch size"}
    colours = {}
    for label in latencies:
        axes = panels[label]
        assert [text.get_text() for text in axes.get_yticklabels()] == ["ours", "eager & $co"]
        for row, times in enumerate([(10, 12, 300), (200, 240, 300)]):
            dots = axes.collections[row]
            assert sorted(dots.get_offsets()[:, 0]) == list(times)
            assert np.abs(dots.get_offsets()[:, 1] - row).max() < 0.5
            colours[row] = tuple(dots.get_facecolor()[0, :3])
        assert "12 ms   1.20×" in axes.texts[0].get_text()
    lines = panels["batch size"].get_lines()
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ("ours", [1, 8], [1000 / 12, 8000 / 12]),
        ("eager & $co", [1, 8], [1000 / 240, 8000 / 240]),
    ]
    assert [colors.to_rgb(line.get_color()) for line in lines] == [colours[0], colours[1]]
    assert colours[0] != colours[1]


@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_a_picture_is_what_its_name_says(result: bench.Benchmark, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib.figure")
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        plot.draw(result, path)
    first, second = (path.read_bytes() for path in paths)
    if suffix == ".svg":
        assert first == second
        assert "<!-- eager &amp; $co -->" in first.decode()
    elif suffix == ".png":
        assert first == second
        pixels = np.asarray(Image.open(paths[0]).convert("RGB")).reshape(-1, 3)
        for colour in plot._COLOURS[:2]:  # medians and lines have them pure
            assert (pixels == list(bytes.fromhex(colour[1:]))).all(1).sum() > 100
    else:
        assert first.startswith(b"%PDF-")


def test_a_picture_of_another_kind_is_refused_before_anything_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(tmp_path / "nowhere"), "--plot", "bench.gif"]) == 2
    assert capsys.readouterr().err == "error: --plot bench.gif is no picture: its name must end in .png, .svg, .pdf.\n"


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.run(["bench", str(tmp_path / "nowhere"), "--plot", "bench.png"]) == 1
    assert "matplotlib can't be imported" in (said := capsys.readouterr().err)
    assert "pip install 'ropevit-export[plot]'" in said


@pytest.mark.parametrize(
    ("backend", "precision", "theirs"),
    [
        ("onnxruntime", "fp16", "fp32"),
        ("onnxruntime-cuda", "fp32", "fp32"),
        ("onnxruntime-cuda", "bf16", "bf16"),
        ("tensorrt", "fp16", "fp16"),
        ("tensorrt", "int8", "fp16"),
    ],
)
def test_peers_compute_in_the_bundles_precision_where_they_are_on_a_gpu(
    bundle: Path, backend: str, precision: str, theirs: str
) -> None:
    listed = manifest.read(bundle)
    listed = listed.model_copy(
        update={"artifacts": tuple(each.model_copy(update={"precision": precision}) for each in listed.artifacts)}
    )
    (contender,) = contenders([bundle], [], [backend])
    assert peers.precision_on(contender.backend, listed) == theirs


@pytest.mark.parametrize("model", ["rope_mixed_ape_deit_small", "swin_rope_axial_tiny", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize(("precision", "limit"), [("fp16", 0.02), ("bf16", 0.2)])
def test_a_peer_in_16_bits_is_still_the_model(
    case: Callable[..., Case], model: str, precision: Precision, limit: float
) -> None:
    each = case(model, "64")
    copied = Weights(tensors={name: tensor.clone() for name, tensor in each.sized.tensors.items()}, classes=1000)
    run = reference.batch_runner(
        reference.build(each.spec, copied, each.resolution, outputs_of(each.spec, "logits")),
        compiled=False,
        precision=precision,
    )
    (answers,) = run(each.images[:1])
    assert answers.dtype == np.float32
    assert np.abs(answers - each.theirs[:1]).max() < limit * each.theirs.std()


def test_a_peer_asked_onto_a_gpu_that_is_not_there_is_an_error(case: Callable[..., Case]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    each = case("swin_rope_axial_tiny", "64")
    model = reference.build(each.spec, each.sized, each.resolution, outputs_of(each.spec, "logits"))
    with pytest.raises(BackendError, match="PyTorch .* finds no GPU"):
        reference.batch_runner(model, compiled=False, device="cuda")


def test_the_plain_export_of_complex_numbers_is_a_sentence(case: Callable[..., Case], tmp_path: Path) -> None:
    each = case("swin_rope_axial_tiny", "64")
    model = reference.build(each.spec, each.sized, each.resolution, outputs_of(each.spec, "logits"))
    with pytest.raises(TraceError, match="plain torch.onnx.export fails on the unfolded model"):
        export_plain(model, each.images[:1], tmp_path / "plain.onnx", ["logits"])


def test_a_plain_export_in_half_takes_the_float32_images_that_all_contenders_take(case: Callable[..., Case]) -> None:
    each = case("rope_axial_deit_small", "64")
    model = reference.build(each.spec, each.sized, each.resolution, outputs_of(each.spec, "logits"))
    half = reference.rounded(model, "fp16")
    job = peers.Job(model=model, images=each.images[:1], backend="onnxruntime", precision="fp16")
    runner = peers.plain_session("onnxruntime", half, job)
    theirs = each.theirs[:1]
    error = np.linalg.norm(runner.run({"image": each.images[:1]})["logits"] - theirs) / np.linalg.norm(theirs)
    assert 1e-5 < error < 5e-3  # float16, and not float32


def test_on_engines_the_plain_export_is_built_into_one(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[EngineSpec] = []

    class Maker:
        suffix = ".engine"

        def build(self, onnx: Path, spec: EngineSpec, path: Path) -> Plan:
            built.append(spec)
            path.write_bytes(onnx.read_bytes()[:4])
            return Plan(files=(path,), layers=(), built_with="tensorrt 11", targets=("90",))

    def run(model: Path, **options: object) -> tuple[str, int, object]:
        return model.name, len(model.read_bytes()), options

    monkeypatch.setitem(BUILDERS, "tensorrt", Maker)
    monkeypatch.setitem(RUNNERS, "tensorrt", run)
    each = case("rope_axial_deit_small", "64")
    model = reference.build(each.spec, each.sized, each.resolution, outputs_of(each.spec, "logits"))
    job = peers.Job(model=model, images=each.images[:1], backend="tensorrt", precision="fp32")
    made: object = peers.plain_session("tensorrt", model, job)
    assert made == (
        "plain.engine", 4, {"precision": "fp32", "targets": ("90",), "built_with": "tensorrt 11"},
    )  # fmt: skip
    assert [(spec.runtime, spec.precision, spec.profiles) for spec in built] == [("tensorrt", "fp32", ())]


class CountingWorker:
    """Says who ran, in which order; its time is the number of its turn."""

    turns: ClassVar[list[str]] = []

    def __init__(self, contender: Contender, *_: object) -> None:
        self.name, self.describe, self.mine = contender.name, "counted", 0

    def wait_until_ready(self) -> None: ...
    def stop(self) -> None: ...
    def join(self) -> None: ...
    def peak_mb(self) -> int:
        return 1

    def run(self) -> float:
        self.turns.append(self.name)
        self.mine += 1
        return float(self.mine)


def test_all_take_a_turn_in_every_round_and_warm_up_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_Worker", CountingWorker)
    made = contenders([HERE / name for name in "abc"], [], ["onnxruntime"])
    result = bench.bench(made, resolution=Resolution.parse("32"), rounds=8)
    rounds = [CountingWorker.turns[start : start + 3] for start in range(0, len(CountingWorker.turns), 3)]
    assert len(rounds) == bench.WARM_UP + 8
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    first = bench.WARM_UP + 1
    assert [each.milliseconds for each in result.timings] == [tuple(float(first + turn) for turn in range(8))] * 3


def test_a_turn_ends_when_threads_have_stopped_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy = [0.0], 0.05
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock[-1] + seconds))
    monkeypatch.setattr(time, "process_time", lambda: min(clock[-1], busy))
    bench.turn(lambda: None)
    assert busy < clock[-1] <= busy + 2 * 0.02
    busy = float("inf")
    bench.turn(lambda: None)
    assert clock[-1] < 2  # it gives up


def test_on_a_gpu_copies_are_included_and_its_clocks_are_taken_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_Worker", CountingWorker)
    monkeypatch.setattr(hardware, "gpus", lambda: ([{"name": "NVIDIA H100", "clocks_sm_mhz": 1980.0}], ""))
    made = contenders([HERE / "a"], ["eager"], ["onnxruntime-cuda", "onnxruntime"])
    result = bench.bench(made, resolution=Resolution.parse("32"), batches=(1, 4), rounds=1)
    assert {each.contender: each.transfers for each in result.timings} == {
        "a, onnxruntime-cuda": "included",
        "a, onnxruntime": "none",
        "eager": "included",  # where the first backend is
    }
    assert [(each["batch"], each["clocks_sm_mhz"]) for each in result.gpus_under_load] == [(1, 1980.0), (4, 1980.0)]


def test_a_bundle_is_timed_and_written_down(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["bench", str(bundle), "--rounds", "3", "--json", "-q", "--out", str(tmp_path / "bench.json")])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert json.loads((tmp_path / "bench.json").read_text()) == printed
    (timing,) = printed["timings"]
    assert len(timing["milliseconds"]) == 3
    assert 0 < timing["p50_ms"] <= timing["p99_ms"]
    assert timing["ratio"] == 1.0
    assert timing["runtime"].endswith("float32, model-32.onnxruntime.onnx")
    assert timing["transfers"] == "none"
    assert printed["gpus_under_load"] == []
    assert printed["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--res", "64"), "small: no graph for 64x64: the bundle serves 32x32"),
        (("--batch", "2"), "small: a batch of 2 was given, model-32.onnxruntime.onnx takes 1"),
    ],
)
def test_what_a_contender_cannot_run_is_its_own_sentence(
    bundle: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(bundle), "-q", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {sentence}.\n"


def test_a_contender_that_dies_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(worker: bench._Worker) -> float:
        worker._worker._process.kill()
        return float(worker._receive())

    monkeypatch.setattr(bench._Worker, "run", die)
    with pytest.raises(BackendError, match="small ended by SIGKILL, was memory short?"):
        bench.bench(contenders([bundle], [], ["onnxruntime"]), rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_run(peer: str, tmp_path: Path) -> None:
    """Of a model that their processes know too."""
    for library in {"torchao-int8": ["torchao"], "nncf-int8": ["nncf"]}.get(peer, []):
        pytest.importorskip(library)
    backend = "onnxruntime" if peer == "static-int8" else "openvino"
    pytest.importorskip(backend)
    digits = tmp_path / "digits"
    options = ("--model", "rope_mixed_deit_digits", "--res", "32", "--engine", "none", "-q", "--out", str(digits))
    assert cli.run([*options]) == 0
    result = bench.bench(contenders([digits], [peer], [backend]), rounds=2)
    assert [each.contender for each in result.timings] == ["digits", peer]
    assert all(len(each.milliseconds) == 2 for each in result.timings)
    runtime = result.timings[1].runtime
    assert ("to float32" in runtime) == (not peers.PEERS[peer].exact)
    assert "INVALID" not in runtime


def test_a_peer_that_answers_something_else_is_invalid() -> None:
    exact = {"logits": np.random.default_rng(0).standard_normal((2, 10)).astype(np.float32)}
    assert peers.nearness(exact, exact) == "cosine 1.0000 to float32"
    assert peers.nearness({"logits": -exact["logits"]}, exact) == "INVALID: cosine -1.0000 to float32"
    assert peers.nearness({"logits": exact["logits"] * np.nan}, exact) == "INVALID: answers NaN or Inf"
