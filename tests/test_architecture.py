"""The direction of imports, which no codebase keeps by goodwill."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ropevit_export"
STAGES = ("checkpoint", "models", "rope", "trace", "passes", "backends", "parity", "bundle")
# What each runtime or framework may be imported by, at any level.
OWNERS = {
    "torch": ("checkpoint", "models", "trace"),
    "timm": ("models",),
    "onnxruntime": ("backends/onnxruntime.py", "passes/quantize/ranges.py"),  # calibration runs the float32 graph
    "openvino": ("backends/openvino.py",),
    "tensorrt_rtx": ("backends/tensorrt_rtx.py",),
    "cuda": ("backends/engine_runner.py",),
    "tensorrt": ("backends/",),
    "matplotlib": ("verbs/plot.py",),
    "onnxsim": ("passes/simplify.py",),
    "huggingface_hub": ("checkpoint/hub.py",),
}


def imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def faults(place: str, source: str) -> list[str]:
    """What a file at `place`, relative to the package, imports but must not."""
    stage = place.split("/")[0]
    out = []
    for name in imports(source):
        top, *rest = name.split(".")
        if top == "ropevit_export" and stage in STAGES and rest and rest[0] in STAGES and rest[0] != stage:
            # Reports show artifacts and parity: the one place where two stages' results meet outside the pipeline.
            if place == "bundle/report.py" and rest[0] == "parity":
                continue
            out.append(f"{place} imports {name}")
        if top == "ropevit_export" and stage in STAGES and rest[:1] in (["pipeline"], ["cli"]):
            out.append(f"{place} imports {name}")
        if top in OWNERS and not place.startswith(OWNERS[top]) and place != "values.py":
            out.append(f"{place} imports {name}")
    return out


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_stages_meet_only_in_the_pipeline(path: Path) -> None:
    assert faults(path.relative_to(PACKAGE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("rope/tables.py", "from ropevit_export.trace import fold"),
        ("models/adopt.py", "import ropevit_export.pipeline"),
        ("parity/compare.py", "import torch"),
        ("pipeline.py", "import onnxruntime"),
    ],
)
def test_the_walk_sees_a_wrong_import(place: str, source: str) -> None:
    assert faults(place, source)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models"], ["models", "--json"], *([verb, "--help"] for verb in ("check", "doctor", "inspect"))],
)
def test_help_and_models_import_no_framework(arguments: list[str]) -> None:
    code = (
        "import sys; from ropevit_export.cli import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'numpy'} & sys.modules.keys();"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
