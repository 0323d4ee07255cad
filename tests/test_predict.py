"""`predict`: every picture of a folder once, whatever stops it on the way."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.bundle import golden
from ropevit_export.cli import terminal
from ropevit_export.errors import InputError
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.values import Resolution
from ropevit_export.verbs import parts, predict
from tests.conftest import golden_of


def folder_of(path: Path, count: int) -> Path:
    """Tiny pictures of noise, every 50th of which is broken."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for index in range(count):
        name = path / f"{index:05}.png"
        if index % 50 == 7:
            name.write_bytes(b"no picture")
        else:
            Image.fromarray(rng.integers(0, 255, (8, 9, 3), dtype=np.uint8)).save(name)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "pictures", 200)


def rows_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return found


def test_answers_are_pytorchs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The photographs that the golden file holds PyTorch's answers to."""
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, (*PHOTOS, tmp_path / "missing.jpg"))))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name {index}" for index in range(1000)))
    out = tmp_path / "new" / "out.parquet"
    command = ["predict", str(bundle), "--data", str(listing), "--out", str(out), "--labels", str(names), "--json"]
    assert cli.run([*command, "--top", "3", "-q"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["computed"], summary["bad"]) == (3, 3, 1)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [*map(str, PHOTOS), str(tmp_path / "missing.jpg")]
    logits = golden_of(bundle / "golden-32.safetensors")[1][1:].astype(np.float64)
    for row, theirs in zip(rows, logits, strict=False):
        assert row["classes"] == np.argsort(-theirs)[:3].tolist()
        assert row["names"] == [f"name {index}" for index in row["classes"]]
        shares = np.exp(theirs) / np.exp(theirs).sum()
        np.testing.assert_allclose(row["probabilities"], shares[row["classes"]], rtol=1e-4)
    assert (rows[2]["classes"], rows[2]["probabilities"], rows[2]["names"]) == (None, None, None)
    assert "No such file" in rows[2]["error"]
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]
    # Once more it is all there; asked for something else it is left alone.
    assert cli.run([*command, "--top", "3", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 0
    assert cli.run([*command, "--top", "4", "-q"]) == 1
    assert "is not of this bundle, these pictures and options" in capsys.readouterr().err


def test_features_come_with_their_shape(tmp_path: Path) -> None:
    bundle = tmp_path / "features"
    small = ["--model", "shallow_dinov3_small", "--res", "32x48", "--engine", "none", "-q", "--weights", "random"]
    outputs = ["--output", "pooled,features:1", "--batch", "1:2:4"]
    assert cli.run([*small, *outputs, "--out", str(bundle)]) == 0
    listing, out = tmp_path / "list.txt", tmp_path / "out.parquet"
    listing.write_text("\n".join(map(str, PHOTOS)))
    assert cli.run(["predict", str(bundle), "--data", str(listing), "--out", str(out), "-q"]) == 0
    schema = pq.read_schema(out)
    assert schema.names == ["path", "error", "pooled", "features_1"]
    shape = tuple(map(int, schema.field("features_1").metadata[b"shape"].split(b",")))
    _, expected = golden.read(bundle / "golden-32x48.safetensors", ["pooled", "features_1"])
    found = np.array([row["features_1"] for row in rows_of(out)]).reshape(-1, *shape)
    np.testing.assert_allclose(found, expected["features_1"][1:], atol=1e-4)
    np.testing.assert_allclose([row["pooled"] for row in rows_of(out)], expected["pooled"][1:], atol=1e-4)


# Processes that have imported everything and done nothing: a fork of one is a run from its beginning.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ropevit_export.verbs.predict", "pyarrow.parquet", "onnxruntime"])


def killed_and_resumed(asked: predict.Job, out: Path, part: int, kills: int) -> None:
    """SIGKILL each time that parts have been added, wherever the run then is."""
    folder, wait = out.with_name(f"{out.name}.parts"), random_waits()

    def there() -> int:
        return len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0

    for number in range(kills + 1):
        before = there()
        child = FORKS.Process(target=predict.predict, args=(asked, out), kwargs={"part_rows": part})
        child.start()
        if number < kills:
            while there() == before and child.is_alive():
                time.sleep(0.001)
            time.sleep(next(wait))
            child.kill()
        child.join(300)
        assert child.exitcode == (-signal.SIGKILL if number < kills else 0)


def random_waits() -> Iterator[float]:
    rng = np.random.default_rng(0)
    return (float(rng.uniform(0, 0.01)) for _ in itertools.count())


def assert_each_once(out: Path, data: Path) -> None:
    rows = rows_of(out)
    assert [row["path"] for row in rows] == sorted(path.name for path in data.iterdir())
    for index, row in enumerate(rows):
        broken = index % 50 == 7
        assert (row["classes"] is None, row["error"] is not None) == (broken, broken), row["path"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_three_times_every_picture_is_there_once(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed" / "out.parquet", tmp_path / "whole" / "out.parquet"
    killed_and_resumed(predict.job(bundle, pictures), killed, part=10, kills=3)
    assert_each_once(killed, pictures)
    predict.predict(predict.job(bundle, pictures), whole)
    assert rows_of(killed) == rows_of(whole)


@pytest.mark.slow
def test_five_thousand_pictures_killed_three_times(bundle: Path, tmp_path: Path) -> None:
    data, out = folder_of(tmp_path / "data", 5000), tmp_path / "out" / "out.parquet"
    killed_and_resumed(predict.job(bundle, data), out, part=200, kills=3)
    assert_each_once(out, data)


class Died(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True])
def test_whatever_rename_it_dies_at_the_next_run_completes_it(
    bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before and after each rename: of the plan, of every part and of the whole file."""
    few = tmp_path / "few.txt"
    few.write_text("\n".join(str(path) for path in sorted(pictures.iterdir())[5:9]))
    asked = predict.job(bundle, few)
    replace: Callable[..., Path] = Path.replace
    for kill in range(5):
        out, count = tmp_path / f"{after}-{kill}" / "out.parquet", itertools.count()

        def dying(self: Path, target: Path, kill: int = kill, count: Iterator[int] = count) -> Path:
            dies = next(count) == kill
            if dies and not after:
                raise Died
            done = replace(self, target)
            if dies:
                raise Died
            return done

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dying)
            with pytest.raises(Died):
                predict.predict(asked, out, part_rows=1)
        assert out.exists() == (after and kill == 4)
        predict.predict(asked, out, part_rows=1)
        assert [Path(row["path"]).name for row in rows_of(out)] == [f"{index:05}.png" for index in range(5, 9)]
        assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]


def test_another_plan_does_not_go_on_with_it(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out.parquet", predict.job(bundle, pictures)

    def stops(*rest: Any) -> Iterator[Any]:
        yield next(predict.local(*rest))
        raise Died

    with pytest.raises(Died):
        predict.predict(asked, out, answers=stops, part_rows=1)
    assert not out.exists()
    with pytest.raises(InputError, match="was begun with top 5, which is 2 now"):
        predict.predict(predict.job(bundle, pictures, top=2), out)
    with parts.claimed(out), pytest.raises(InputError, match="is being written by another process now"):
        predict.predict(asked, out)


@pytest.mark.parametrize(
    ("data", "options", "code", "sentence"),
    [
        ("nowhere", [], 1, "is neither a folder nor a list of pictures: No such file"),
        (".", [], 1, "holds no pictures"),
        ("empty.txt", [], 1, "names no pictures: needs a path a line"),
        ("one.txt", ["--batch", "2"], 2, "--batch 2: model-32.onnxruntime.onnx takes 1 to 1 pictures"),
        ("one.txt", ["--res", "64"], 1, "no graph for 64x64"),
        ("one.txt", ["--labels", "one.txt"], 1, "has 1 lines, the model 1000 classes: needs a name a line"),
    ],
)
def test_what_can_not_be_predicted_is_said(
    bundle: Path, tmp_path: Path, data: str, options: list[str], code: int, sentence: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("one.txt").write_text("a.png\n")
    assert cli.run(["predict", str(bundle), "--data", data, "--out", "o.parquet", *options]) == code
    assert sentence in capsys.readouterr().err
    assert not Path("o.parquet").exists()
    assert not Path("o.parquet.parts").exists()


def test_a_broken_decoder_is_a_row(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*rest: object) -> object:
        raise KeyError("a decoder's own fault")

    listing, out = tmp_path / "list.txt", tmp_path / "out.parquet"
    listing.write_text("\n".join(map(str, PHOTOS)))
    asked = predict.job(bundle, listing)
    monkeypatch.setattr("ropevit_export.runtime.crop", broken)
    predict.predict(asked, out)
    assert [row["error"] for row in rows_of(out)] == ['KeyError: "a decoder\'s own fault"'] * 2
    assert asked.size == Resolution(height=32, width=32)


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with terminal.counted("pictures", quiet=False) as tell:
        for done in range(100, 160, 10):  # the first 100 are of an earlier run
            tell(done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "110 of 200 pictures, 0.5 a second, 180 s left"
    assert len(lines) == 3


@pytest.mark.slow
def test_ray_gives_the_same_rows(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ropevit-export[ray]'")
    from ropevit_export.verbs import predict_ray

    asked = predict.job(bundle, pictures)
    os.environ.pop("RAY_ADDRESS", None)
    ours, theirs = tmp_path / "ray.parquet", tmp_path / "local.parquet"
    predict.predict(asked, theirs)
    try:
        summary = predict.predict(asked, ours, answers=predict_ray.answers)
    finally:
        ray.shutdown()
    assert rows_of(ours) == rows_of(theirs)
    assert "Ray" in summary.runtime
