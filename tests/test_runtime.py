from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.bundle import golden
from ropevit_export.errors import BackendError, BundleError, InputError
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.runtime import load
from ropevit_export.values import Resolution
from tests import fake_gpu
from tests.conftest import golden_of

BACKENDS = ("onnxruntime", "openvino")
MODEL = (
    "--model",
    "shallow_rope_axial_deit_small",
    "--res",
    "32x48,48",
    "--weights",
    "random",
    "--engine",
    "none",
    "-q",
)


def exported(folder: Path, *options: str) -> Path:
    assert cli.run([*MODEL, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bundles") / "baked", "--batch", "1:2:3", "--pixels")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bundles") / "inputs", "--rope", "inputs")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bundles") / "dynamic", "--rope", "dynamic")


@pytest.mark.parametrize("size", ["32x48", "48"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_of_several_sizes_picks_the_graph(baked: Path, size: str, backend: str) -> None:
    image, expected = golden_of(baked / golden.name(Resolution.parse(size)))
    np.testing.assert_allclose(load(baked, backend).run(image), expected, atol=5e-5)


@pytest.mark.parametrize("mode", ["dynamic", "inputs"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_runs_a_size_that_was_not_named(mode: str, backend: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(mode)
    image, expected = golden_of(folder / golden.name(Resolution(height=16, width=32)))
    np.testing.assert_allclose(load(folder, backend).run(image[:1]), expected[:1], atol=5e-5)


def test_a_photograph_is_prepared_as_parity_prepares_it(dynamic: Path) -> None:
    model, size = load(dynamic), Resolution.parse("48")
    image, expected = golden_of(dynamic / golden.name(size))
    with Image.open(PHOTOS[0]) as photo:
        prepared = model.prepare(photo, size)
    assert np.array_equal(prepared, image[1:2])
    np.testing.assert_allclose(model.run(prepared), expected[1:2], atol=5e-5)


@pytest.mark.parametrize("mode", ["dynamic", "inputs"])
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 3, 64, 48), "no graph for 64x48: the bundle serves multiples of 16 up to 48x48"),
        ((1, 3, 40, 48), "no graph for 40x48"),
        ((2, 3, 48, 48), "a batch of 2 was given, model-.*.onnx takes 1"),
        ((1, 48, 48, 3), r"float32 images of shape \(1, 48, 48, 3\) were given, needed float32 \(B, 3, H, W\)"),
    ],
)
def test_what_a_bundle_of_any_size_cannot_take_is_an_error(
    mode: str, shape: tuple[int, ...], sentence: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(InputError, match=sentence):
        load(request.getfixturevalue(mode)).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("shape", "dtype", "sentence"),
    [
        ((1, 64, 64, 3), np.uint8, "no graph for 64x64: the bundle serves 32x48, 48x48"),
        ((1, 48, 32, 3), np.uint8, "no graph for 48x32"),
        ((4, 48, 48, 3), np.uint8, "a batch of 4 was given, model-48.onnxruntime.onnx takes 1 to 3"),
        ((1, 48, 48, 3), np.float32, "needed uint8"),
    ],
)
def test_what_a_baked_bundle_cannot_take_is_an_error(
    baked: Path, shape: tuple[int, ...], dtype: type, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        load(baked).run(np.zeros(shape, dtype))


def test_an_engine_serves_the_sizes_of_its_profiles(
    dynamic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 3, 48, 48)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_gpu.install(monkeypatch, (shape, shape, shape))
    folder = fake_gpu.with_engine(tmp_path / "bundle", dynamic, (shape, shape, shape))
    model = load(folder, "tensorrt-rtx")
    assert model.describe(Resolution.parse("48")) == "TensorRT-RTX 1.7.1, NVIDIA H100, fp32, model.engine"
    assert float(model.run(np.ones(shape, np.float32))[0, 0]) == 3 * 48 * 48
    with pytest.raises(InputError, match="no graph for 32x48: the bundle serves 48x48"):  # its graph would
        model.run(np.ones((1, 3, 32, 48), np.float32))
    with pytest.raises(BundleError, match="holds no tensorrt engine: export it with --engine tensorrt"):
        load(folder, "tensorrt")
    (folder / "model.engine").write_bytes(b"another")
    with pytest.raises(BackendError, match="can't load model.engine on NVIDIA H100, SM 90; it was built .* for SM 89"):
        load(folder, "tensorrt-rtx").run(np.ones(shape, np.float32))


def test_running_a_bundle_needs_no_torch() -> None:
    code = "import sys, ropevit_export.runtime; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_of_links_runs_as_it_does(bundle: Path, tmp_path: Path, backend: str) -> None:
    """As huggingface_hub's cache has it: every file a link into ../../blobs."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshots" / "x"
    blobs.mkdir()
    linked.mkdir(parents=True)
    for number, file in enumerate(sorted(bundle.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (linked / file.name).symlink_to(f"../../blobs/{number}")
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    assert np.array_equal(load(linked, backend).run(images), load(bundle, backend).run(images))
    assert cli.run(["check", str(linked)]) == 0


def test_a_signal_finds_its_stack_when_models_have_gone(bundle: Path) -> None:
    """OpenVINO leaves a freed one where the older of two models goes first: in a process of its own, which may die."""
    pytest.importorskip("openvino")
    code = f"""
import signal
from pathlib import Path
from ropevit_export.backends.openvino import OpenVino
model = Path({str(bundle)!r}) / "model-32.onnx"
older, newer = OpenVino(model), OpenVino(model)
del older
del newer
signal.signal(signal.SIGINT, lambda number, frame: print("heard"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
