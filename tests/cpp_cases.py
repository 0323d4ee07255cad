"""What the C++ tests run on: small bundles, and what the Python runtime answers to their golden images.

    python -m tests.cpp_cases CASES                # to call ctest by hand, with the environment that this prints

A case is a folder with `bundle` and `python/BACKEND-SIZE.safetensors`, the answers by output; where positions are
inputs also `positions/ROWSxCOLUMNS.safetensors`, filled by Python.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives NumPy bfloat16
import numpy as np
import onnxruntime
from safetensors.numpy import save_file

from ropevit_export import Request, Resolution, export, find_model
from ropevit_export.bundle import golden, positions
from ropevit_export.machine import hardware
from ropevit_export.models.spec import ModelSpec
from ropevit_export.rope import inputs
from ropevit_export.runtime import load
from ropevit_export.values import Dim


@dataclass(frozen=True, kw_only=True)
class Case:
    """`default`: made in every run of the tests, not only in slow ones. `embed`: the absolute embedding's side."""

    model: str
    sizes: str
    embed: int | None = None
    default: bool = True
    backends: tuple[str, ...] = ("onnxruntime", "openvino")
    options: dict[str, object] = dataclasses.field(default_factory=dict)


CPU = set(hardware.cpu_features())
CASES = {
    "baked": Case(model="rope_axial_deit_small", sizes="32"),
    "inputs": Case(model="rope_mixed_ape_deit_small", sizes="48", options={"rope": "inputs"}),
    "pixels": Case(model="rope_axial_deit_small", sizes="32x64", options={"pixels": True, "batch": Dim.parse("1:2:3")}),
    "outputs": Case(
        model="dinov3_small",
        sizes="32x48",
        options={
            "rope": "inputs",
            "precision": "fp16",
            "io_precision": "fp16",
            "output": "cls,tokens,features:0,1",
            "batch": Dim.parse("2"),
        },
    ),
    "int8": Case(
        model="rope_mixed_deit_digits",
        sizes="32",
        # Without VNNI OpenVINO cuts sums and is out of tolerance, as `ropevit-export check` says too.
        backends=("onnxruntime",) if hardware.cuts_8_bit_sums() else ("onnxruntime", "openvino"),
        options={"weights": "auto", "precision": "int8", "calib": "digits"},
    ),
    # An embedding that is resized bilinearly, to more patches and to fewer, beside attention pooling.
    "pe": Case(
        model="pe_core_small", sizes="80x96", embed=3, options={"rope": "inputs", "output": "pooled,features:0"}
    ),
    # Patches of 14 pixels, tables by extent, a packed SwiGLU.
    "eva02": Case(model="eva02_tiny_336", sizes="42x28", options={"rope": "inputs"}),
    # Norms within attention and the MLP, split SwiGLU.
    "eva02_clip": Case(model="eva02_base_clip_224", sizes="32x48", default=False, options={"precision": "fp16"}),
    "dynamic": Case(model="rope_mixed_deit_small", sizes="32x48", default=False, options={"rope": "dynamic"}),
    "dynamic_ape": Case(
        model="rope_axial_ape_deit_small",
        sizes="32x48",
        default=False,
        backends=("onnxruntime",),  # OpenVINO refuses the graph's cubic resizing
        options={"rope": "dynamic", "pixels": True},
    ),
    "mixed": Case(model="rope_mixed_deit_small", sizes="48", default=False, options={"precision": "fp16"}),
    "plain": Case(model="deit_small_patch16_LS", sizes="32", default=False, options={"rope": "inputs"}),
    "bf16": Case(
        model="rope_axial_deit_small",
        sizes="32",
        default=False,
        backends=("openvino",) if {"avx512_bf16", "amx_bf16"} & CPU else (),  # ONNX Runtime's CPU provider has none
        options={"precision": "bf16", "io_precision": "bf16", "rope": "inputs"},
    ),
    "dinov3": Case(model="dinov3_small", sizes="32x64", default=False),
    "ir": Case(
        model="rope_mixed_deit_small",
        sizes="32",
        default=False,
        options={"engines": ("openvino",), "output": "pooled,tokens"},
    ),
    "swin": Case(model="swin_rope_axial_tiny", sizes="64", default=False, options={"batch": Dim.parse("2")}),
    "swin_pixels": Case(model="swin_rope_mixed_tiny", sizes="32x64", default=False, options={"pixels": True}),
}


def small(spec: ModelSpec, embed: int | None = None) -> ModelSpec:
    """Two narrow blocks: what a graph takes and gives is as in the published model."""
    if spec.packaged:
        return spec
    if len(spec.depths) > 1:
        return dataclasses.replace(spec, depths=(1, 1, 1, 1))
    hidden = spec.hidden and 128 * 8 // 3  # as timm makes it of that width
    return dataclasses.replace(
        spec, depths=(2,), dims=(128,), heads=(2,), hidden=hidden, ape_grid=embed or spec.ape_grid
    )


def make(name: str, folder: Path, threads: int) -> Path:
    """Write a case; `threads` of Python's sessions, 0: ONNX Runtime's own choice."""
    case = CASES[name]
    sizes = tuple(map(Resolution.parse, case.sizes.split(",")))
    options = {"weights": "random", "engines": ("none",), **case.options}
    request = Request(model=small(find_model(case.model), case.embed), resolutions=sizes, **options)  # type: ignore[arg-type]
    bundle = export(request, out=folder / name / "bundle").path
    answers = folder / name / "python"
    answers.mkdir()
    for backend in case.backends:
        with threads_of_python(threads):
            _write_answers(bundle, backend, answers)
    if (bundle / positions.NAME).exists():
        _write_positions(bundle, folder / name / "positions")
    return bundle


def _write_answers(bundle: Path, backend: str, folder: Path) -> None:
    model = load(bundle, backend)
    for file in sorted(bundle.glob("golden-*.safetensors")):
        text = file.stem.removeprefix("golden-")
        size = Resolution.parse(text)
        artifact = next(each for each in model.manifest.artifacts if each.takes(size.height, size.width))
        images, _ = golden.read(file, [output.name for output in artifact.outputs])
        save_file(model.run_all(images[: artifact.batch.min]), folder / f"{backend}-{text}.safetensors")


def _write_positions(bundle: Path, folder: Path) -> None:
    """Filled for every grid within the bundle's limit, in the format that the graph takes."""
    artifact = load(bundle).manifest.artifacts[0]
    dynamic, formats = artifact.dynamic, {each.name: np.dtype(each.dtype) for each in artifact.inputs}
    assert dynamic is not None
    assert dynamic.patch
    rows_most, columns_most = (side // dynamic.patch for side in dynamic.max)
    parts = positions.read(bundle / positions.NAME, (rows_most, columns_most))
    folder.mkdir()
    for rows, columns in itertools.product(range(1, rows_most + 1), range(1, columns_most + 1)):
        filled = inputs.fill(parts, rows, columns, dynamic.prefix)
        save_file(
            {name: each.astype(formats[name]) for name, each in filled.items()},
            folder / f"{rows}x{columns}.safetensors",
        )


class threads_of_python:  # noqa: N801 - a context manager
    """Sessions with so many threads: the runtime's options leave them to ONNX Runtime."""

    def __init__(self, count: int) -> None:
        self._count, self._kept = count, onnxruntime.SessionOptions

    def __enter__(self) -> None:
        kept, count = self._kept, self._count

        class Options(kept):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.intra_op_num_threads = count

        onnxruntime.SessionOptions = Options

    def __exit__(self, *error: object) -> None:
        onnxruntime.SessionOptions = self._kept


def environment(cases: Path, threads: int) -> dict[str, str]:
    """What the C++ tests are told: where cases and runtimes are."""
    found = {"ROPEVIT_TEST_CASES": str(cases), "ROPEVIT_TEST_THREADS": str(threads)}
    for variable, package, pattern in (
        ("ROPEVIT_ONNXRUNTIME", "onnxruntime", "capi/libonnxruntime.so.*"),
        ("ROPEVIT_OPENVINO", "openvino", "libs/libopenvino_c.so.*"),
    ):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        (found[variable],) = map(str, Path(spec.submodule_search_locations[0]).glob(pattern))
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    count = int(os.environ.get("OMP_NUM_THREADS", "1"))
    for each in CASES:
        make(each, target, count)
    print("\n".join(f"export {name}={value}" for name, value in environment(target, count).items()))
