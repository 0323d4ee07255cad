"""`check` replays the golden files on all that runs here: ONNX Runtime and OpenVINO for real, engines on a fake GPU."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ropevit_export import cli
from ropevit_export.bundle import golden, manifest
from ropevit_export.machine.files import sha256
from ropevit_export.values import Resolution
from tests import fake_gpu
from tests.conftest import golden_of
from tests.fake_gpu import CALLS, Answers, Profile

Run = Callable[..., tuple[int, str, str]]
GRAPHS = ["model-dynamic.onnx", "model-dynamic.onnxruntime.onnx"]
ALL = [*GRAPHS, "model-dynamic.xml"]
GOLDEN = golden.name(Resolution.parse("48"))
NO_GPU = "no GPU can be used: cudaFree: CUDA driver version is insufficient (CUDA error 35): is there an NVIDIA driver?"


def profile(*batches: int) -> Profile:
    low, opt, high = ((batch, 3, 48, 48) for batch in batches)
    return low, opt, high


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16, any size up to 48, batch 1 to 3, with OpenVINO's IR; tests copy it before they change it."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    options = ("--res", "32,48", "--rope", "dynamic", "--precision", "fp16", "--batch", "1:2:3", "--engine", "openvino")
    assert cli.run(["--model", "rope_mixed_deit_digits", *options, "-q", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(folder, option, ...)`: (exit code, stdout, stderr) of `check`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def on_gpu(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The bundle with an engine for 48, which answers as PyTorch does, on the fake GPU; `entry`: of the manifest."""

    def make(*batches: int, failing: str = "", wrong: float = 0, **entry: object) -> Path:
        held = profile(*(batches or (1, 2, 3)))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        fake_gpu.install(monkeypatch, held, failing=failing, answers=answers(bundle, wrong))
        return fake_gpu.with_engine(tmp_path / "bundle", bundle, held, **entry)

    return make


def answers(bundle: Path, wrong: float) -> Answers:
    images, expected = golden_of(bundle / GOLDEN)
    return {image.tobytes(): row + np.float32(wrong) for image, row in zip(images, expected, strict=True)}


def rows(out: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out)["parity"]
    return found


def artifacts(out: str) -> list[str]:
    """Those that were compared, in the order in which they were."""
    return list(dict.fromkeys(row["artifact"] for row in rows(out)))


def change(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of a bundle anew, and its hash in the manifest with it."""
    listed, before = path.with_name(manifest.MANIFEST), sha256(path)
    write(path)
    listed.write_text(listed.read_text().replace(before, sha256(path)))


def expect_more(path: Path) -> None:
    """Of the reference, in a golden file: larger logits than PyTorch's."""
    images, expected = golden_of(path)
    golden.write(path, images, {"logits": expected + np.float32(1)}, {})


def test_ir_is_run_beside_its_graph(bundle: Path, run: Run) -> None:
    code, out, err = run(bundle)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("28 of 28 comparisons within tolerance, 3 of 3 artifacts run here")
    code, out, _ = run(bundle, "--json")
    assert artifacts(out) == ALL
    assert json.loads(out)["not_run"] == []
    of_ir = [row for row in rows(out) if row["artifact"] == ALL[-1]]
    assert {row["runtime"].split(" ")[0] for row in of_ir} == {"OpenVINO"}
    assert [(row["resolution"], row["batch"]) for row in of_ir] == [
        ([32, 32], 1), ([32, 32], 3), ([48, 48], 1), ([48, 48], 3)
    ]  # fmt: skip
    assert {row["tolerance"]["relative"] for row in rows(out)} == {1.5e-2}  # of float16


def test_another_expected_answer_fails_all_that_were_run(copy: Path, run: Run) -> None:
    change(copy / GOLDEN, expect_more)
    code, out, err = run(copy)
    assert code == 3
    failed = [line for line in out.splitlines() if "OUT OF tolerance" in line]
    assert {line.split(":")[0] for line in failed} == {
        f"{name} at 48, batch {n}, logits" for name in ALL for n in (1, 3)
    }
    assert err == f"error: {failed[0]}\n"
    assert len(out.splitlines()) == 28  # and no summary
    code, out, _ = run(copy, "--backend", "openvino", "--json")
    assert (code, artifacts(out)) == (3, ALL[-1:])
    assert [row["passed"] for row in rows(out)] == [True, True, False, False]


def test_ir_of_other_weights_than_its_graph_fails_alone(copy: Path, run: Run) -> None:
    tensors = [numpy_helper.to_array(each) for each in onnx.load(copy / ALL[0]).graph.initializer]
    largest = max((each for each in tensors if each.dtype == np.float16), key=lambda each: each.size)

    def negate(path: Path) -> None:
        content = path.read_bytes()
        assert content.count(largest.tobytes()) == 1
        path.write_bytes(content.replace(largest.tobytes(), (-largest).tobytes()))

    change(copy / "model-dynamic.bin", negate)
    code, out, err = run(copy, "--json")
    assert code == 3
    assert {row["artifact"]: row["passed"] for row in rows(out)} == dict(zip(ALL, (True, True, False), strict=True))
    assert err.startswith("error: model-dynamic.xml at 32, batch 1, logits: ")


def test_ir_without_openvino_is_left_out_by_a_sentence(bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, err = run(bundle)
    assert (code, err) == (0, "")
    sentence = "model-dynamic.xml: not run here: OpenVINO can't be imported"
    assert out.splitlines()[-2].startswith(sentence)
    assert out.splitlines()[-2].endswith("pip install 'ropevit-export[openvino]'")
    assert out.splitlines()[-1].endswith("24 of 24 comparisons within tolerance, 2 of 3 artifacts run here")
    code, out, err = run(bundle, "--backend", "openvino")
    assert code == 1
    assert err.startswith(f"error: {sentence}")
    assert "artifacts run" not in out


def test_an_engine_is_run_where_its_gpu_is(on_gpu: Callable[..., Path], run: Run) -> None:
    folder = on_gpu()
    code, out, _ = run(folder)
    assert code == 0
    assert out.splitlines()[-1].endswith("30 of 30 comparisons within tolerance, 4 of 4 artifacts run here")
    code, out, _ = run(folder, "--backend", "tensorrt-rtx", "--json")
    assert (code, artifacts(out)) == (0, ["model.engine"])
    assert [(row["resolution"], row["batch"]) for row in rows(out)] == [([48, 48], 1), ([48, 48], 3)]
    assert {row["runtime"] for row in rows(out)} == {"TensorRT-RTX 1.7.1, NVIDIA H100, fp16"}
    assert {row["tolerance"]["relative"] for row in rows(out)} == {1.5e-2}
    code, out, _ = run(folder, "--backend", "tensorrt-rtx")
    assert out.splitlines()[-1].endswith("2 of 2 comparisons within tolerance, 1 of 1 artifacts run on tensorrt-rtx")


def test_an_engine_gets_the_batches_that_it_was_built_for(on_gpu: Callable[..., Path], run: Run) -> None:
    folder = on_gpu(2, 2, 2, batch=manifest.BatchEntry(min=2, opt=2, max=2))
    code, out, _ = run(folder, "--backend", "tensorrt-rtx", "--json")
    assert (code, [row["batch"] for row in rows(out)]) == (0, [2])


@pytest.mark.parametrize("options", [(), ("--backend", "tensorrt-rtx")])
def test_an_engine_that_answers_otherwise_is_out_of_tolerance(
    on_gpu: Callable[..., Path], run: Run, options: tuple[str, ...]
) -> None:
    code, out, err = run(on_gpu(wrong=0.5), *options, "--json")
    assert code == 3
    assert {row["artifact"] for row in rows(out) if not row["passed"]} == {"model.engine"}
    assert err.startswith("error: model.engine at 48, batch 1, logits: ")


def test_without_a_gpu_an_engine_is_left_out_unless_it_was_asked_for(on_gpu: Callable[..., Path], run: Run) -> None:
    folder = on_gpu(failing="free")
    code, out, err = run(folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[-2] == f"model.engine: not run here: {NO_GPU}"
    assert out.splitlines()[-1].endswith("28 of 28 comparisons within tolerance, 3 of 4 artifacts run here")
    code, out, _ = run(folder, "--json")
    assert (code, artifacts(out)) == (0, ALL)
    assert json.loads(out)["not_run"] == [{"artifact": "model.engine", "reason": NO_GPU}]
    code, out, err = run(folder, "--backend", "tensorrt-rtx", "--json")
    assert (code, err) == (1, f"error: model.engine: not run here: {NO_GPU}\n")
    assert [each["reason"] for each in json.loads(out)["not_run"]] == [NO_GPU]


def test_an_engine_for_another_gpu_is_left_out(on_gpu: Callable[..., Path], run: Run) -> None:
    folder = on_gpu()
    change(folder / "model.engine", lambda path: path.write_bytes(b"another"))
    code, out, _ = run(folder)
    assert code == 0
    assert "model.engine: not run here: TensorRT-RTX 1.7.1 can't load model.engine on NVIDIA H100, SM 90" in out
    assert run(folder, "--backend", "tensorrt-rtx")[0] == 1


def test_an_engine_without_its_weights_is_never_loaded(on_gpu: Callable[..., Path], run: Run) -> None:
    """Not every release of TensorRT can tell by the engine that it has none."""
    folder = on_gpu(options={"strip_weights": True})
    code, out, _ = run(folder)
    assert code == 0
    assert "model.engine: not run here: model.engine was built without its weights: a host has to" in out
    assert CALLS == []
    code, _, err = run(folder, "--backend", "tensorrt-rtx")
    assert code == 1
    assert "was built without its weights" in err


@pytest.mark.parametrize(
    ("backend", "runtime", "forms"), [("onnxruntime", "ONNX Runtime", 2), ("openvino", "OpenVINO", 1)]
)
def test_without_ir_a_backend_runs_the_graphs_that_are_for_it(
    copy: Path, run: Run, backend: str, runtime: str, forms: int
) -> None:
    for path in (*copy.glob("*.xml*"), *copy.glob("*.bin")):
        path.unlink()
    listed = manifest.read(copy)
    listed.model_copy(update={"artifacts": tuple(each for each in listed.artifacts if each.kind == "onnx")}).write(copy)
    code, out, _ = run(copy, "--backend", backend, "--json")
    assert (code, artifacts(out)) == (0, GRAPHS[:forms])
    assert {row["runtime"].startswith(runtime) for row in rows(out)} == {True}
    assert {tuple(row["resolution"]) for row in rows(out)} == {(32, 32), (48, 48), (24, 36)}  # nobody named the last


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--backend", "tensorrt"), 1, "holds no tensorrt engine: export it with --engine tensorrt"),
        (("--backend", "openvino", "--by-layer"), 2, "--by-layer runs ONNX graphs on ONNX Runtime's CPU provider"),
        (("--backend", "cuda"), 2, "'cuda' is not one of 'onnxruntime', 'onnxruntime-cuda'"),
    ],
)
def test_what_a_bundle_has_nothing_for_is_an_error(
    bundle: Path, run: Run, options: tuple[str, ...], code: int, sentence: str
) -> None:
    found, out, err = run(bundle, *options)
    assert (found, out) == (code, "")
    assert sentence in err
