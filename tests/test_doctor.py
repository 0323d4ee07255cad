"""`doctor`, with libraries that are whole, missing, broken or deadly."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ropevit_export import cli
from ropevit_export.machine import hardware
from ropevit_export.verbs import doctor

QUICK = [("runs", "onnxruntime"), ("runs", "onnxruntime-openvino"), ("runs", "openvino")]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules come before those that are installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    return tmp_path


def test_what_is_here_is_tried_and_what_is_not_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "trials", lambda: QUICK)
    assert cli.run(["doctor", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    usable = {each["name"]: each for each in found["backends"] if each["usable"]}
    assert "CPUExecutionProvider, float32" in usable["onnxruntime"]["says"]
    assert found["machine"]["cores"] >= 1
    assert found["no_gpu"] or found["machine"]["gpus"]
    installed = {name: version for each in found["packages"] for name, version in each["versions"].items()}
    assert {"torch", "timm", "onnx"} <= installed.keys()
    assert all("pip install" in each["wanted"]["install"] for each in found["packages"])


def test_for_people_it_is_two_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    absent = doctor.Wanted(names=("not-a-package",), serves="nobody", install="pip install 'ropevit-export[quant]'")
    monkeypatch.setattr(doctor, "PACKAGES", (doctor.PACKAGES[0], absent))
    monkeypatch.setattr(doctor, "trials", lambda: QUICK[:1])
    assert cli.run(["doctor", "-q"]) == 0
    text = capsys.readouterr().out
    present, missing, backend = (
        next(line.split() for line in text.splitlines() if name in line.split())
        for name in ("torch", "not-a-package", "onnxruntime")
    )
    version = next(iter(doctor.packages()[0].versions.values()))
    assert [word for word in present if word.isalnum() or word == version] == ["torch", version, "the", "reference"]
    assert "pip install 'ropevit-export[quant]'" in " ".join(missing)  # brackets are no markup
    assert {"onnxruntime", "runs", "yes"} <= set(backend)
    assert text.count("gpu  ") == max(1, len(hardware.gpus()[0]))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
        ("import os; print('[1, 2]', flush=True); os._exit(3)", "its process ended with exit code 3: [1, 2]"),
        (
            "raise ImportError('libx.so: no such file')",
            "OpenVINO can't be imported (libx.so: no such file): pip install",
        ),
        ("raise OSError('libx.so: bad magic')", "can't be imported (libx.so: bad magic)"),
    ],
)
def test_a_broken_library_is_a_row_of_its_own(package: Path, code: str, sentence: str) -> None:
    (package / "openvino.py").write_text(code)
    broken, whole = doctor.tried([("runs", name) for name in ("openvino", "onnxruntime")])
    assert not broken.usable
    assert sentence in broken.says
    assert whole.usable


def test_a_library_that_hangs_is_given_up(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "openvino.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_SECONDS", 2)
    (found,) = doctor.tried([("runs", "openvino")])
    assert (found.usable, found.says) == (False, "gave no answer in 2 s.")


def test_an_interruption_ends_what_is_being_tried(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = package / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(process)!r}).write_text(str(os.getpid())); time.sleep(60)"
    (package / "openvino.py").write_text(code)
    monkeypatch.setattr(hardware, "cores", lambda: 2)

    def interrupt(stage: str) -> None:
        while not (process.is_file() and process.read_text()):
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doctor.tried([("runs", "onnxruntime"), ("runs", "openvino")], interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(process.read_text()), 0)


def test_where_nothing_can_be_exported_everything_is_said_and_the_exit_code_is_1(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "onnxruntime.py").write_text("raise ImportError('built for another Python')")
    monkeypatch.setattr(doctor, "trials", lambda: QUICK[:1])
    assert cli.run(["doctor", "-q"]) == 1
    out, err = capsys.readouterr()
    assert "matplotlib" in out
    assert err == (
        "error: nothing can be exported here: onnxruntime: onnxruntime can't be imported (built for another Python): "
        "pip install onnxruntime\n"
    )


def test_two_builds_of_onnxruntime_are_one_too_many() -> None:
    wanted = next(each for each in doctor.PACKAGES if each.alone)
    package = doctor.Package(wanted=wanted, versions={"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"})
    assert package.remedy == "uninstall all, then install one"


@pytest.mark.slow
def test_everything_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["does"], each["name"]) for each in found["backends"]] == doctor.trials()
    assert next(each for each in found["backends"] if each["name"] == "pytorch")["usable"]


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_gpu_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "NVIDIA H100 80GB HBM3, 580.105.08, 9.0, 81559, 345, 2619, 1980, [N/A]"
    nvidia_smi(tmp_path, monkeypatch, f"echo '{row}'")
    (gpu,), why = hardware.gpus()
    assert why == ""
    assert gpu == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "580.105.08",
        "compute_cap": "9.0",
        "memory_total_mb": 81559.0,
        "clocks_sm_mhz": 345.0,
        "clocks_mem_mhz": 2619.0,
        "clocks_max_sm_mhz": 1980.0,
        "power_limit_w": "[N/A]",
    }


def test_without_a_working_nvidia_smi_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver mismatch'; exit 18")
    assert hardware.gpus() == ([], "nvidia-smi fails: Failed to initialize NVML: Driver mismatch")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert hardware.gpus() == ([], "no nvidia-smi: there is no NVIDIA driver")
