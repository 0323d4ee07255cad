"""The runner of engines, on a GPU that is not there; `pytest -m gpu` runs it on one that is."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ropevit_export.backends.engine_runner import EngineRunner
from ropevit_export.backends.select import ON_GPU, runner
from ropevit_export.errors import BackendError
from tests import fake_gpu
from tests.fake_gpu import CALLS, Cuda, Profile, TensorRt

Load = Callable[..., EngineRunner]


def at(size: int, batches: tuple[int, int, int] = (1, 2, 4)) -> Profile:
    low, opt, high = ((batch, 3, size, size) for batch in batches)
    return low, opt, high


def images(batch: int, size: int) -> np.ndarray:
    return np.arange(batch * 3 * size * size, dtype=np.float32).reshape(batch, 3, size, size)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """`load(profile, ...)`: an engine with these profiles, on the fake GPU."""

    def make(
        *profiles: Profile, runtime: str = "tensorrt-rtx", data: bytes = b"an engine", failing: str = "", **said: object
    ) -> EngineRunner:
        fake_gpu.install(monkeypatch, *profiles, failing=failing)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "model.engine").write_bytes(data)
        loaded = runner(runtime, tmp_path / "model.engine", "fp16", **said)
        assert isinstance(loaded, EngineRunner)
        return loaded

    return make


def test_images_go_in_are_computed_on_and_come_out_in_this_order(load: Load) -> None:
    engine = load(at(32), runtime="tensorrt")
    CALLS.clear()
    given = images(2, 32)
    answer = engine.run({"image": given})["logits"]
    np.testing.assert_allclose(answer, given.reshape(2, -1).sum(1, keepdims=True))
    assert CALLS == [
        "shape 2x3x32x32", "malloc", "address image", "in", "malloc", "address logits", "execute", "out", "wait",
    ]  # fmt: skip
    assert engine.describe == "TensorRT 1.7.1, NVIDIA H100, fp16"


def test_a_second_run_of_the_same_shape_only_copies_and_runs(load: Load) -> None:
    engine = load(at(32))
    engine.run({"image": images(2, 32)})["logits"]
    CALLS.clear()
    engine.run({"image": images(2, 32)})["logits"]
    assert CALLS == ["in", "execute", "out", "wait"]


def test_every_size_runs_in_its_own_profile(load: Load) -> None:
    engine = load(at(32), at(48))
    for size, calls in ((48, ["profile 1", "wait", "shape 1x3x48x48"]), (32, ["profile 0", "wait", "shape 1x3x32x32"])):
        CALLS.clear()
        answer = engine.run({"image": images(1, size)})["logits"]
        assert float(answer[0, 0]) == images(1, size).sum()
        assert CALLS[:3] == calls


def test_a_larger_batch_gets_larger_buffers_and_all_are_given_back(load: Load) -> None:
    engine = load(at(32))
    cuda = engine._gpu._cuda
    for batch in (1, 4, 2):
        given = images(batch, 32)
        np.testing.assert_allclose(engine.run({"image": given})["logits"], given.reshape(batch, -1).sum(1)[:, None])
    assert len(cuda.held) == 2
    assert CALLS.count("malloc") == 4  # a smaller batch fits
    del engine
    gc.collect()
    assert cuda.held == {}
    assert CALLS[-1] == "destroy"


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"image": images(1, 64)}, r"model.engine has no profile for image \(1, 3, 64, 64\); it takes image "
         r"\(1, 3, 32, 32\) to \(4, 3, 32, 32\) or image \(1, 3, 48, 48\) to \(4, 3, 48, 48\)"),
        ({"image": images(8, 32)}, r"no profile for image \(8, 3, 32, 32\)"),
        ({"image": images(1, 32).astype(np.float64)}, "image is float64, needed float32"),
        ({}, "no image was given"),
    ],
)  # fmt: skip
def test_what_an_engine_does_not_take_is_a_sentence(load: Load, feeds: dict[str, np.ndarray], sentence: str) -> None:
    engine = load(at(32), at(48))
    with pytest.raises(BackendError, match=sentence):
        engine.run(feeds)["logits"]
    assert "execute" not in CALLS


def test_after_a_refused_shape_the_same_one_is_refused_again(load: Load) -> None:
    engine = load(at(32))
    engine.run({"image": images(1, 32)})["logits"]
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"does not take image of shape \(8, 3, 32, 32\): .* outside of profile 0"
        ):
            engine.run({"image": images(8, 32)})["logits"]


def test_an_engine_for_another_gpu_says_what_it_was_built_for(load: Load) -> None:
    sentence = (
        "TensorRT-RTX 1.7.1 can't load model.engine on NVIDIA H100, SM 90; it was built with tensorrt-rtx 1.5 for "
        "SM 86, 89: the target of this engine is another GPU"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(sentence)}$"):
        load(at(32), data=b"another", targets=("86", "89"), built_with="tensorrt-rtx 1.5")


def test_an_engine_without_its_weights_is_not_run(load: Load) -> None:
    with pytest.raises(BackendError, match="model.engine was built without its weights: a host has to put them back"):
        load()


def test_a_machine_without_a_gpu_is_a_sentence(load: Load) -> None:
    with pytest.raises(BackendError, match=r"no GPU can be used: cudaFree: CUDA driver .* insufficient .CUDA error 35"):
        load(at(32), failing="free")


def test_what_rtx_compiled_is_there_for_the_next_process(load: Load, tmp_path: Path) -> None:
    load(at(32)).run({"image": images(1, 32)})["logits"]
    (kept,) = (tmp_path / "cache" / "ropevit-export").iterdir()
    assert kept.read_bytes() == b"compiled"
    load(at(32))
    assert "cached compiled" in CALLS
    load(at(32), runtime="tensorrt")  # has nothing to compile
    assert not any(call.startswith("cached") for call in CALLS)


def test_a_cache_that_cannot_be_written_is_no_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert load(at(32)).run({"image": images(1, 32)})["logits"].shape == (1, 1)


def test_the_fake_has_nothing_that_the_real_ones_lack() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    cuda = pytest.importorskip("cuda.bindings.runtime")
    pairs = (
        (fake_gpu.Context, real.IExecutionContext),
        (fake_gpu.Engine, real.ICudaEngine),
        (Cuda, cuda),
        (TensorRt, real),
    )
    for fake, its_original in pairs:
        names = {name for name, _ in inspect.getmembers(fake, callable) if not name.startswith("_")}
        assert {name for name in names if not hasattr(its_original, name)} == set()
    for name in ("create_runtime_cache", "set_runtime_cache", "dynamic_shapes_kernel_specialization_strategy"):
        assert hasattr(real.IRuntimeConfig, name)
    assert hasattr(real.IRuntimeCache, "serialize")
    assert hasattr(real.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(real.Runtime, "deserialize_cuda_engine")


def test_backends_on_a_gpu() -> None:
    assert ON_GPU == (
        "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", "tensorrt", "tensorrt-rtx",
    )  # fmt: skip
