"""`scripts/bench_suite`: who takes part, and the page's tables from its rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ropevit_export.machine import hardware

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_suite"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("bench_suite", str(SCRIPT))
    spec = importlib.util.spec_from_loader("bench_suite", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def test_the_plain_export_is_first_and_nobody_takes_part_twice(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for features, bf16 in (["avx2"], False), (["amx_bf16"], True):
        monkeypatch.setattr(hardware, "cpu_features", lambda features=features: features)
        names = [each.name for each in script.contenders(Path("x"), ("fp32", "bf16", "int8"))]
        assert names[0] == "plain, onnxruntime"
        assert len(set(names)) == len(names)
        assert ("int8, openvino, rest bf16" in names) == bf16
        assert {"fp32, openvino", "bf16, openvino", "compile-bf16", "nncf-int8, openvino"} <= set(names)


def test_tables_stand_between_the_marks(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings: list[dict[str, Any]] = [
        {"contender": "plain", "runtime": "x", "p50_ms": 100.0, "ratio": 1.0, "batch": 1},
        {"contender": "int8", "runtime": "x, cosine 0.9990 to float32", "p50_ms": 25.0, "ratio": 0.25, "batch": 1},
    ]
    run = {"model": "m", "resolution": [32, 48], "rounds": 3, "machine": {"processor": "Z80", "cores": 1},
           "timings": timings}  # fmt: skip
    (tmp_path / "z80.json").write_text(json.dumps([run, run | {"model": "n", "timings": timings[:1]}]))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nbehind\n")
    monkeypatch.setattr(script, "FIGURES", tmp_path)
    monkeypatch.setattr(script, "PAGE", page)
    made = script.page()
    assert made.startswith("before\n")
    assert made.endswith("\nbehind\n")
    assert "old" not in made
    assert "| ms a batch | m at 32x48, batch 1 | n at 32x48, batch 1 |" in made
    assert "| int8 | 25 (0.25), cosine 0.9990 to float32 |  |" in made
