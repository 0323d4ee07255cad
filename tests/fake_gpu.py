"""A GPU and TensorRT that are not there: enough of their interface to run an engine, and a list of what was called.

Device memory is real memory, so that a copy in the wrong order or to the wrong place gives a wrong answer. The engine
answers with the sum of each image, or with what a test has it answer to each of the images that it knows.
"""

# ruff: noqa: N802, N815 - the names are theirs

from __future__ import annotations

import ctypes
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from ropevit_export.backends.engine_runner import LIBRARIES
from ropevit_export.bundle import manifest
from ropevit_export.machine.files import sha256

Shape = tuple[int, ...]
# Logits by an image's bytes.
Answers = Mapping[bytes, np.ndarray]
# (smallest, usual, largest) shape of `image`, by profile
Profile = tuple[Shape, Shape, Shape]
CALLS: list[str] = []


class Cuda:
    """`cuda.bindings.runtime`. Every function answers (code, result...)."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.held: dict[int, Any] = {}

    def _answer(self, name: str, *results: Any) -> tuple[Any, ...]:
        CALLS.append(name)
        return (35, None) if name == self.failing else (0, *results)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"CUDA driver version is insufficient"

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:
        return self._answer("attribute", {75: 9, 76: 0}[attribute])

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return self._answer("properties", SimpleNamespace(name=b"NVIDIA H100\0\0"))

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return self._answer("stream", 7)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._answer("destroy")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        return self._answer("wait")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.held[address] = buffer
        return self._answer("malloc", address)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        if address:
            del self.held[address]
        return self._answer("free")

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        device = to if kind == 1 else source
        assert len(self.held[device]) >= size
        ctypes.memmove(to, source, size)
        return self._answer("in" if kind == 1 else "out")


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shape: Shape = ()
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        CALLS.append(f"profile {profile}")
        self.profile, self.shape = profile, ()
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        CALLS.append(f"shape {'x'.join(map(str, shape))}")
        low, _, high = self.engine.profiles[self.profile]
        held = all(a <= extent <= b for a, extent, b in zip(low, shape, high, strict=True))
        if not held:
            self.engine.log.log(1, f"{shape} is outside of profile {self.profile}")
        self.shape = shape if held else ()
        return held

    def get_tensor_shape(self, name: str) -> Shape:
        known = list(self.engine.answers.values())
        return (self.shape[0], known[0].size if known else 1)

    def set_tensor_address(self, name: str, address: int) -> bool:
        CALLS.append(f"address {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        CALLS.append("execute")
        assert stream == 7
        assert self.shape
        source = (ctypes.c_float * math.prod(self.shape)).from_address(self.addresses["image"])
        images = np.ctypeslib.as_array(source).reshape(self.shape[0], -1)
        known = self.engine.answers
        answer = np.stack([known[image.tobytes()] for image in images]) if known else images.sum(1)
        ctypes.memmove(self.addresses["logits"], answer.ctypes.data, answer.nbytes)
        return True


class Config:
    """An IRuntimeConfig and its IRuntimeCache in one."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self) -> None:
        self.loaded = b""

    def create_runtime_cache(self) -> Config:
        return self

    def set_runtime_cache(self, cache: Config) -> bool:
        CALLS.append("use cache")
        return True

    def serialize(self) -> bytes:
        return b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        CALLS.append(f"cached {blob.decode()}")
        return True


class Engine:
    num_io_tensors = 2

    def __init__(self, profiles: list[Profile], log: Any, answers: Answers) -> None:
        self.profiles, self.log, self.answers = profiles, log, answers
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"image": "in", "logits": "out"}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_profile_shape(self, name: str, profile: int) -> Profile:
        return self.profiles[profile]

    def get_engine_stat(self, stat: str) -> int:
        return 4096 if not self.profiles else -1  # an engine without profiles stands for one without weights

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Config | None = None) -> Context:
        CALLS.append("context")
        return Context(self)


class TensorRt:
    """The module, `tensorrt` or `tensorrt_rtx`."""

    __version__ = "1.7.1"
    EngineStat = SimpleNamespace(STRIPPED_WEIGHTS_SIZE="stripped")
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        ERROR: ClassVar[int] = 1

    def __init__(self, *profiles: Profile, answers: Answers = MappingProxyType({})) -> None:
        self.profiles, self.answers = list(profiles), answers

    def Runtime(self, log: Any) -> Any:
        def deserialize(data: bytes) -> Engine | None:
            if data != b"an engine":
                log.log(1, "the target of this engine is another GPU")
                log.log(1, "and so it goes")
                return None
            return Engine(self.profiles, log, self.answers)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def install(
    monkeypatch: pytest.MonkeyPatch,
    *profiles: Profile,
    failing: str = "",
    answers: Answers = MappingProxyType({}),
) -> None:
    """An engine with these profiles, on a GPU whose functions that CALLS names as `failing` fail."""
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = Cuda(failing)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    for each in LIBRARIES.values():
        monkeypatch.setitem(sys.modules, each.module, TensorRt(*profiles, answers=answers))
    CALLS.clear()


def with_engine(folder: Path, bundle: Path, profile: Profile, **changes: object) -> Path:
    """A copy of a dynamic bundle with an engine for the fake GPU, for one of its sizes; `changes` to its entry."""
    shutil.copytree(bundle, folder)
    listed = manifest.read(folder)
    (folder / "model.engine").write_bytes(b"an engine")
    engine = listed.artifacts[0].model_copy(
        update={
            "kind": "tensorrt-rtx",
            "path": "model.engine",
            "sha256": sha256(folder / "model.engine"),
            "resolutions": (profile[0][2:],),
            "profiles": (profile[0][2:],),
            "targets": ("89",),
            **changes,
        }
    )
    listed.model_copy(update={"artifacts": (*listed.artifacts, engine)}).write(folder)
    return folder
