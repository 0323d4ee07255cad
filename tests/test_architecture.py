"""The direction of imports, which no codebase keeps by goodwill."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ropevit_export"
# Each row may import the rows above it; a stage may not import another stage: they meet in the pipeline.
RANKS: tuple[tuple[str, ...], ...] = (
    ("errors.py",),
    ("formats.py", "kernels.py"),
    ("values.py",),
    ("machine/",),
    ("models/spec.py",),
    ("request.py",),
    ("images/",),
    ("checkpoint/", "models/", "rope/", "trace/", "passes/", "backends/", "parity/", "bundle/"),
    ("inspect/",),
    ("report/",),
    ("tuned.py",),
    ("runtime.py",),
    ("serve_ray.py",),
    ("planning.py",),
    ("stages.py",),
    ("pipeline.py",),
    ("verbs/",),
    ("cli/",),
    ("start.py",),
    ("__init__.py",),  # the package's face
)
# Reports and manifests hold what was compared: the one place where two stages' results meet below the pipeline.
ALLOWED = {("bundle/", "parity/compare.py")}
# What each runtime or framework may be imported by, at any level.
OWNERS = {
    "torch": ("checkpoint", "models", "trace"),
    "timm": ("models",),
    "onnxruntime": ("backends/onnxruntime.py",),
    "openvino": ("backends/openvino.py",),
    "nncf": ("backends/openvino.py",),
    "torchao": ("models/reference.py",),
    "tensorrt_rtx": ("backends/tensorrt_rtx.py",),
    "cuda": ("backends/engine_runner.py",),
    "tensorrt": ("backends/",),
    "matplotlib": ("verbs/plot.py",),
    "onnxsim": ("passes/simplify.py",),
    "huggingface_hub": ("checkpoint/hub.py",),
    "pyarrow": ("verbs/parts.py", "verbs/predict.py", "verbs/predict_ray.py"),
    "ray": ("serve_ray.py", "verbs/matrix.py", "verbs/predict_ray.py"),
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def place_of(module: str) -> str | None:
    """The file of a dotted name below the package, or of the module that the name is taken from."""
    parts = module.split(".")[1:]
    while parts:
        path = "/".join(parts)
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in FILES:
                return file
        parts.pop()
    return "__init__.py"


def row_and_unit(place: str) -> tuple[int, str]:
    """The rank of a file, and the folder or file of `RANKS` that it belongs to: the longest that fits."""
    fitting = [(unit, row) for row, units in enumerate(RANKS) for unit in units if place.startswith(unit)]
    unit, row = max(fitting, key=lambda pair: len(pair[0]))
    return row, unit


def imports(source: str) -> set[str]:
    """Every module imported anywhere in a file, in functions too; of `from a import b` the longer name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def faults(place: str, source: str) -> list[str]:
    """What a file at `place`, relative to the package, imports but must not."""
    row, unit = row_and_unit(place)
    out = []
    for name in imports(source):
        top = name.split(".")[0]
        if top == "ropevit_export":
            other = place_of(name)
            assert other is not None
            their_row, their_unit = row_and_unit(other)
            wrong = their_row > row or (their_row == row and their_unit != unit)
            if wrong and (unit, other) not in ALLOWED:
                out.append(f"{place} imports {name}")
        if top in OWNERS and not place.startswith(OWNERS[top]) and place != "values.py":
            out.append(f"{place} imports {name}")
    return out


@pytest.mark.parametrize("place", FILES)
def test_imports_go_down(place: str) -> None:
    assert faults(place, (PACKAGE / place).read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("rope/tables.py", "from ropevit_export.trace import fold"),
        ("models/adopt.py", "import ropevit_export.pipeline"),
        ("models/spec.py", "from ropevit_export.models import zoo"),
        ("values.py", "from ropevit_export.request import Request"),
        ("verbs/check.py", "def run():\n    from ropevit_export.cli import terminal"),
        ("bundle/staging.py", "from ropevit_export.parity.measure import Sample"),
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
