"""`tune` and what follows it: which settings are tried, which are left out, and where the choice counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropevit_export import cli, tuned
from ropevit_export.backends.openvino import OpenVino
from ropevit_export.bundle import manifest
from ropevit_export.errors import BackendError, BundleError, InputError, UsageError
from ropevit_export.machine import hardware
from ropevit_export.machine.files import sha256
from ropevit_export.runtime import load
from ropevit_export.tuned import Setting, candidates
from ropevit_export.verbs import tune as tuning
from tests.conftest import SMALL, golden_of

AMX = ("avx512_bf16", "amx_bf16")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "small"))


def edited(bundle: Path, **changes: Any) -> None:
    path = bundle / tuned.TUNED
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def names(bundle: Path, backends: tuple[str, ...], goal: tuned.Goal, features: tuple[str, ...], cores: int) -> set[str]:
    return {each.name for each in candidates(manifest.read(bundle), backends, goal, features, cores)}


def test_each_backend_is_tried_on_each_form_that_it_takes(bundle: Path) -> None:
    both = ("onnxruntime", "openvino")
    assert names(bundle, both, "latency", (), 2) == {
        "onnxruntime (onnxruntime)",
        "onnxruntime (portable)",
        "openvino (portable)",
    }
    assert names(bundle, ("openvino",), "latency", AMX, 2) == {"openvino (portable)", "openvino (portable) bf16"}
    assert names(bundle, ("openvino",), "latency", (), 4) == {"openvino (portable)", "openvino (portable), 2 threads"}
    assert names(bundle, ("openvino",), "throughput", (), 2) == {
        "openvino (portable)",
        "openvino (portable), 2 streams",
    }
    assert names(bundle, ("tensorrt-rtx",), "throughput", AMX, 8) == {"tensorrt-rtx"}


def test_the_fastest_setting_is_taken_on_this_machine(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_features", lambda: ["avx2"])
    assert cli.run(["tune", str(copy), "--rounds", "2", "-q"]) == 0
    printed = capsys.readouterr().out
    found = tuned.read(copy)
    assert found is not None
    assert {row.setting.name for row in found.rows} == names(copy, ("onnxruntime", "openvino"), "latency", (), 2)
    times = {row.setting: row.milliseconds for row in found.rows}
    assert all(time is not None and time > 0 for time in times.values())
    assert times[found.chosen] <= 1.02 * min(times.values())  # type: ignore[operator, type-var]
    assert all(row.worst is not None and 0 <= row.worst <= 1 for row in found.rows)
    assert found.chosen.name in printed
    size = load(copy).sizes[0]
    model = load(copy, "auto")
    assert model.describe(size).endswith(", as tuned for latency on this machine")
    assert (found.chosen.backend == "openvino") == model.describe(size).startswith("OpenVINO")
    image, expected = golden_of(next(copy.glob("golden-*")))
    np.testing.assert_allclose(model.run(image[:1]), expected[:1], atol=1e-4)
    assert cli.run(["check", str(copy)]) == 0


def test_an_export_can_tune_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def found(bundle: Path, *, batch: int, **_: object) -> tuned.Tuned:
        asked.append(batch)
        tuned.write(bundle, done := made(bundle, Setting(backend="onnxruntime")))
        return done

    monkeypatch.setattr(tuning, "tune", found)
    out = tmp_path / "small"
    assert cli.run([*SMALL, "--weights", "random", "--batch", "2:4:8", "--tune", "--out", str(out)]) == 0
    assert asked == [2]  # the smallest that there is a graph for
    printed = capsys.readouterr().out.splitlines()
    assert any("onnxruntime: for latency at" in line for line in printed)
    assert printed[-1].startswith(str(out))
    assert load(out, "auto").describe(load(out).sizes[0]).endswith("as tuned for latency on this machine")

    def refused(*_: object, **__: object) -> tuned.Tuned:
        raise BackendError("nothing runs it.")

    monkeypatch.setattr(tuning, "tune", refused)
    assert cli.run([*SMALL, "--weights", "random", "--tune", "--force", "--out", str(out)]) == 1
    assert f"{out} is written and whole, but can't be tuned: nothing runs it." in capsys.readouterr().err
    assert manifest.read(out).artifacts[0].batch.min == 1
    assert cli.run([*SMALL, "--matrix", "--tune", "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"manifest_sha256": "0" * 64}, "tuned.json is of another manifest"),
        ({"machine": {"processor": "Z80", "features": [], "cores": 1}}, r"another machine \(Z80, 1 cores\)"),
        ({"version": "0.1"}, "is of onnxruntime 0.1"),
    ],
)
def test_a_choice_counts_where_it_was_made(
    copy: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(backend="onnxruntime", form="portable")
    tuned.write(copy, made(copy, setting))
    assert tuned.choose(copy) == (setting, "as tuned for latency on this machine")
    edited(copy, **changes)
    chosen, why = tuned.choose(copy)
    assert chosen == Setting(backend="openvino")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tuned.choose(copy)[0] == Setting(backend="onnxruntime")


def made(bundle: Path, setting: Setting) -> tuned.Tuned:
    return tuned.Tuned(
        manifest_sha256=sha256(bundle / manifest.MANIFEST),
        machine=tuned.this_machine(),
        version=tuned.version_of(setting.backend),
        goal="latency",
        batch=1,
        resolution=(32, 32),
        rounds=1,
        chosen=setting,
        rows=(),
    )


def test_a_bundle_that_was_not_tuned_says_so(bundle: Path) -> None:
    assert load(bundle, "auto").describe(load(bundle).sizes[0]).endswith("the default, this bundle was not tuned")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "Field required. Remove it, or run tune again"),
        ("[" * 100_000, "Remove it, or run tune again"),
        ("x" * (1 << 20) + "x", "is no file that tune wrote"),
    ],
)
def test_a_file_that_is_none_is_an_error(copy: Path, text: str, message: str) -> None:
    (copy / tuned.TUNED).write_text(text)
    with pytest.raises(BundleError, match=message):
        load(copy, "auto")


def test_a_backend_that_is_none_is_an_error(copy: Path) -> None:
    tuned.write(copy, made(copy, Setting(backend="onnxruntime")))
    edited(copy, chosen={"backend": "pickle"})
    with pytest.raises(BundleError, match="names the backend 'pickle': there are onnxruntime"):
        load(copy, "auto")


def test_what_answers_wrongly_is_not_timed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OpenVino.run
    monkeypatch.setattr(OpenVino, "run", lambda self, feeds: {k: v + 1 for k, v in right(self, feeds).items()})
    found = tuning.tune(copy, backends=("onnxruntime", "openvino"), rounds=1)
    for row in found.rows:
        assert (row.milliseconds is None) == (row.setting.backend == "openvino")
        assert ("OUT OF tolerance" in row.reason) == (row.setting.backend == "openvino")
    with pytest.raises(BackendError, match="nothing runs small at 32 within its limits here: openvino"):
        tuning.tune(copy, backends=("openvino",), rounds=1)


def test_auto_chooses_itself(bundle: Path) -> None:
    with pytest.raises(UsageError, match="name a backend to choose them"):
        load(bundle, "auto", threads=1)


def test_bfloat16_is_computed_or_refused(bundle: Path) -> None:
    model, size = load(bundle, "openvino", compute="bf16"), load(bundle).sizes[0]
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(hardware.cpu_features()):
        assert "computed in bf16" in model.describe(size)
    else:
        with pytest.raises(BackendError, match="to compute .* in bf16, CPU takes f"):
            model.describe(size)
    with pytest.raises(BackendError, match="it takes f32 or bf16"):
        load(bundle, "openvino", compute="f16").describe(size)


def test_compute_is_openvinos(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(bundle), "--compute", "bf16"]) == 2
    assert "--compute is OpenVINO's" in capsys.readouterr().err
    assert cli.run(["check", str(bundle), "--backend", "openvino", "--compute", "f32"]) == 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_many_batches_are_answered_in_their_order(bundle: Path, backend: str) -> None:
    model = load(bundle, backend, streams=2)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(9)]
    alone = load(bundle, backend, threads=1)
    for images, answer in zip(batches, model.run_many(batches), strict=True):
        np.testing.assert_allclose(answer["logits"], alone.run(images), atol=1e-5)
    assert ", 2 streams" in model.describe(model.sizes[0]) or backend == "onnxruntime"


def test_batches_are_taken_as_answers_are_asked_for(bundle: Path) -> None:
    taken = 0

    def batches() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield np.zeros((1, 3, 32, 32), np.float32)

    answers = load(bundle, streams=2).run_many(batches())
    next(answers)
    assert taken == 4
    answers.close()  # type: ignore[attr-defined]
    assert taken == 4


def test_a_wrong_batch_is_an_error_in_its_place(bundle: Path) -> None:
    batches = [np.zeros((1, 3, size, size), np.float32) for size in (32, 48, 32)]
    answers = load(bundle, streams=2).run_many(batches)
    assert next(answers)["logits"].shape == (1, 1000)
    with pytest.raises(InputError, match="no graph for 48x48"):
        next(answers)
