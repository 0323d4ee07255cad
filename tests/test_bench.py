"""`bench`: the arithmetic by hand, the order of turns with workers that only count, the whole with real ones."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import ClassVar

import pytest

from ropevit_export import bench, cli
from ropevit_export.backends.select import RUNNERS
from ropevit_export.bench import Contender, Timing, contenders
from ropevit_export.cli import options
from ropevit_export.errors import UsageError

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


def test_a_ratio_is_of_medians_and_its_spread_is_of_rounds() -> None:
    timing = Timing(
        contender="b",
        runtime="",
        batch=4,
        milliseconds=(20.0, 30.0, 40.0, 30.0, 60.0),
        first_milliseconds=(10.0, 20.0, 20.0, 10.0, 40.0),
        peak_mb=None,
    )
    s = timing.summary()
    assert (s["p50_ms"], s["ratio"], s["images_per_second"]) == (30.0, 1.5, 4 * 1000 / 30)
    assert (s["ratio_q25"], s["ratio_q75"]) == (1.5, 2.0)  # of 1.5, 1.5, 2, 2, 3
    assert s["p90_ms"] == pytest.approx(52.0)


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
    entered = contenders([HERE / name for name in "abc"], [], ["onnxruntime"])
    result = bench.bench(entered, resolution=bench.Resolution.parse("32"), rounds=8)
    rounds = [CountingWorker.turns[start : start + 3] for start in range(0, len(CountingWorker.turns), 3)]
    assert len(rounds) == bench.WARM_UP + 8
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    first = bench.WARM_UP + 1
    assert [each.milliseconds for each in result.timings] == [tuple(float(first + turn) for turn in range(8))] * 3


def test_a_bundle_is_timed_and_written_down(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["bench", str(bundle), "--rounds", "3", "--json", "-q", "--out", str(tmp_path / "bench.json")])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert json.loads((tmp_path / "bench.json").read_text()) == printed
    (timing,) = printed["timings"]
    assert len(timing["milliseconds"]) == 3
    assert 0 < timing["p50_ms"] <= timing["p99_ms"]
    assert timing["ratio"] == 1.0
    assert timing["runtime"].endswith("float32, model-32.onnx")
    assert printed["machine"]["cores"] >= 1
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--res", "64"), "small: no graph for 64x64: the bundle serves 32x32"),
        (("--batch", "2"), "small: a batch of 2 was given, model-32.onnx takes 1"),
    ],
)
def test_what_a_contender_cannot_run_is_its_own_sentence(
    bundle: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(bundle), "-q", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {sentence}.\n"
    assert multiprocessing.active_children() == []


def test_a_contender_that_dies_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(worker: bench._Worker) -> float:
        worker._process.kill()
        return float(worker._receive())

    monkeypatch.setattr(bench._Worker, "run", die)
    with pytest.raises(bench.BackendError, match="small ended with exit code -9 without an answer"):
        bench.bench(contenders([bundle], [], ["onnxruntime"]), rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["eager", "compile", "plain"])
def test_peers_run(bundle: Path, peer: bench.Peer) -> None:
    pytest.importorskip("openvino")
    result = bench.bench(contenders([bundle], [peer], ["openvino"]), rounds=2)
    assert [each.contender for each in result.timings] == ["small", peer]
    assert all(len(each.milliseconds) == 2 for each in result.timings)
