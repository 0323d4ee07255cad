"""What needs an NVIDIA GPU, in small (`pytest -m gpu`); all of it, with times, is `scripts/gpu_acceptance`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli
from ropevit_export.backends.select import BUILDERS, ENGINES
from ropevit_export.errors import BackendError
from ropevit_export.machine import hardware
from ropevit_export.verbs import acceptance, bench, doctor


def step(folder: Path, **changes: str) -> Any:
    given: dict[str, Any] = {
        "does": "build",
        "backend": "onnxruntime",
        "model": "rope_mixed_deit_digits",
        "precision": "fp16",
        "size": "32",
        "calib": "digits",
        "folder": str(folder / "bundle"),
    }
    return acceptance.Step(**given | changes)


def usable(does: str, name: str) -> None:
    """Skip, by a sentence, what this machine can't do."""
    gpus, why = hardware.gpus()
    if not gpus:
        pytest.skip(why)
    (found,) = doctor.tried([(does, name)])
    if not found.usable:
        pytest.skip(f"{name}: {found.says}")


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_engines_give_pytorchs_answers_with_fused_attention(
    backend: str, precision: str, model: str, tmp_path: Path
) -> None:
    usable("runs", backend)
    usable("builds", backend)
    target = str(hardware.gpus()[0][0]["compute_cap"]).replace(".", "")
    if target not in BUILDERS[backend]().all_targets or int(target) < acceptance.SINCE.get(precision, 0):
        pytest.skip(f"{backend} builds no {precision} for SM {target}")
    found = acceptance.build(step(tmp_path, backend=backend, model=model, precision=precision, size="128"))
    assert found["passed"], (found["says"], found["fused_attention"], found["blocks"])
    assert cli.run(["check", str(tmp_path / "bundle"), "--backend", backend]) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
def test_providers_give_pytorchs_answers(backend: str, precision: str, tmp_path: Path) -> None:
    usable("runs", backend)
    found = acceptance.build(step(tmp_path, backend=backend, precision=precision))
    assert found["passed"], found["says"]
    assert cli.run(["check", str(tmp_path / "bundle"), "--backend", backend]) == 0


@pytest.mark.gpu
def test_peers_run_on_the_gpu(tmp_path: Path) -> None:
    usable("runs", "onnxruntime-cuda")
    acceptance.build(step(tmp_path, backend="onnxruntime-cuda"))
    made = bench.contenders([tmp_path / "bundle"], ["eager", "compile", "plain"], ["onnxruntime-cuda"])
    result = bench.bench(made, rounds=3)
    assert {each.transfers for each in result.timings} == {"included"}
    assert all("float16" in each.runtime or "fp16" in each.runtime for each in result.timings)
    assert result.gpus_under_load[0]["clocks_sm_mhz"]


def test_without_a_gpu_the_script_says_so_and_that_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: ([], "no nvidia-smi: there is no NVIDIA driver"))
    monkeypatch.setattr("sys.argv", ["gpu_acceptance", "--out", str(tmp_path / "out.json")])
    assert acceptance.main() == 0
    said = capsys.readouterr().out
    assert said == "skipped: this machine can't show anything: no nvidia-smi: there is no NVIDIA driver.\n"


def diagnosis(*names: tuple[str, str], capability: str = "9.0") -> doctor.Diagnosis:
    backends = tuple(doctor.Backend(name=name, does=does, usable=True, says="") for does, name in names)
    return doctor.Diagnosis(machine={"gpus": [{"compute_cap": capability}]}, no_gpu="", packages=(), backends=backends)


def test_only_what_runs_and_builds_for_this_gpu_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def rtx() -> Any:
        return type("Maker", (), {"all_targets": ("89", "120")})

    monkeypatch.setitem(BUILDERS, "tensorrt-rtx", rtx)
    both = (
        ("reference", "pytorch"),
        ("runs", "tensorrt-rtx"),
        ("builds", "tensorrt-rtx"),
        ("runs", "onnxruntime-cuda"),
    )
    assert acceptance.backends_here(diagnosis(*both, capability="8.9")) == ("tensorrt-rtx", "onnxruntime-cuda")
    assert acceptance.backends_here(diagnosis(*both)) == ("onnxruntime-cuda",)
    assert acceptance.reason_to_skip(diagnosis(*both)) == ""
    assert "none of tensorrt" in acceptance.reason_to_skip(diagnosis(("reference", "pytorch")))
    assert "PyTorch" in acceptance.reason_to_skip(diagnosis(("runs", "onnxruntime-cuda")))


def test_fp16_and_its_times_come_first_and_what_the_gpu_lacks_is_left_out(tmp_path: Path) -> None:
    two = acceptance.MODELS[:2]
    made = list(acceptance.steps(("tensorrt",), "86", "224", "digits", tmp_path, two))
    assert [(each.does, each.precision) for each in made] == [
        *[("build", "fp16")] * 2, *[("time", "fp16")] * 2, *[("build", "bf16")] * 2, *[("build", "int8")] * 2,
        *[("time", "fp16")] * 2,
    ]  # fmt: skip
    assert any(each.precision == "fp8" for each in acceptance.steps(("tensorrt",), "90", "224", "digits", tmp_path))


def test_a_step_that_fails_or_finds_no_time_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def build_all_but_bf16(each: Any, seconds: float) -> dict[str, Any]:
        ran.append(each.precision)
        return {"passed": each.precision != "bf16", "says": f"given {seconds:.0f} s"}

    monkeypatch.setattr(acceptance, "in_its_own_process", build_all_but_bf16)
    rows: list[dict[str, Any]] = []
    wanted = [step(tmp_path, precision=precision) for precision in ("bf16", "fp16")]
    wanted.append(step(tmp_path, does="time"))
    acceptance.run(wanted, time.monotonic() + 60, rows.append)
    assert ran == ["bf16", "fp16"]
    assert [row["passed"] for row in rows] == [False, True, None]
    assert rows[2]["says"] == "skipped: there is nothing to time, its build did not end well."
    rows.clear()
    acceptance.run(wanted[:1], time.monotonic() + 5, rows.append)
    assert (rows[0]["passed"], rows[0]["says"]) == (None, "skipped: it takes about 45 s, 5 s were left.")


def test_a_step_runs_in_its_own_process_and_its_errors_are_its_result(tmp_path: Path) -> None:
    good = acceptance.in_its_own_process(step(tmp_path), 120)
    assert good["passed"], good["says"]
    assert good["parity"]["runtime"].startswith("ONNX Runtime")
    wrong = acceptance.in_its_own_process(step(tmp_path, model="no_such_model"), 120)
    assert wrong["passed"] is False
    assert wrong["says"].startswith("UsageError: ")
    assert acceptance.in_its_own_process(step(tmp_path), 0.1)["says"] == "was stopped after 0 s."


@pytest.mark.again
def test_fused_attention_is_counted_in_the_builders_report(tmp_path: Path) -> None:
    try:
        BUILDERS["tensorrt-rtx"]()
    except BackendError as error:
        pytest.skip(str(error))
    assert "tensorrt-rtx" in ENGINES
    from ropevit_export import Request, Resolution, export, find_model

    model = find_model("rope_mixed_deit_digits")
    request = Request(model=model, resolutions=(Resolution.parse("64"),), precision="fp16", engines=("tensorrt-rtx",))
    made = export(request, out=tmp_path / "bundle")
    found = acceptance.fused(made.path, made.manifest, blocks=len(model.blocks))
    layers = json.loads((tmp_path / "bundle" / "model-64.rtx.engine.layers.json").read_text())["layers"]
    assert found == {"kernels": len(layers), "fused_attention": len(model.blocks), "blocks": len(model.blocks)}
