"""Built engines on the GPU of this machine, by TensorRT or TensorRT-RTX, whose Python modules have one interface."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  makes bfloat16 and float8_e4m3fn names that NumPy knows
import numpy as np

from ropevit_export.errors import BackendError
from ropevit_export.formats import FORMATS

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# NumPy's names by TensorRT's.
_DTYPES = {each.tensorrt: each.numpy for each in FORMATS.values()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    name: str
    module: str
    package: str


# By the backend's name, which is an artifact's kind too.
LIBRARIES = {
    "tensorrt": Library(name="TensorRT", module="tensorrt", package="'ropevit-export[tensorrt]'"),
    "tensorrt-rtx": Library(name="TensorRT-RTX", module="tensorrt_rtx", package="tensorrt-rtx-cu13"),
}


def library(backend: str) -> Any:
    """The backend's Python module. Raises BackendError."""
    wanted = LIBRARIES[backend]
    try:
        return importlib.import_module(wanted.module)
    except Exception as error:  # a broken installation raises anything
        raise BackendError(f"{wanted.name} can't be imported ({error}): pip install {wanted.package}") from error


class Device:
    """The GPU that CUDA takes first, and its calls, which raise BackendError."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except Exception as error:
            raise BackendError(f"cuda.bindings can't be imported ({error}): pip install cuda-bindings") from error
        self._cuda: Any = runtime
        try:
            self.call("cudaFree", 0)  # makes the context that TensorRT works in
        except BackendError as error:
            raise BackendError(f"no GPU can be used: {error}: is there an NVIDIA driver?") from error
        attribute = runtime.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", each, 0)
            for each in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        )
        self.target = f"{major}{minor}"
        self.name = self.call("cudaGetDeviceProperties", 0).name.rstrip(b"\0").decode()
        self.stream = int(self.call("cudaStreamCreate"))

    def call(self, name: str, *arguments: object) -> Any:
        code, *results = getattr(self._cuda, name)(*arguments)
        if int(code):
            said = self._cuda.cudaGetErrorString(code)[1]
            raise BackendError(f"{name}: {said.decode() if isinstance(said, bytes) else said} (CUDA error {int(code)})")
        return results[0] if results else None

    def to_device(self, address: int, array: Array) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def to_host(self, array: Array, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)


class EngineRunner:
    """An engine, loaded. Images go to the GPU and answers come back in every run."""

    def __init__(
        self, plan: Path, *, runtime: str, precision: str, targets: tuple[str, ...] = (), built_with: str = ""
    ) -> None:
        """targets, built_with: what the bundle says of the engine, for the sentence that tells why it can't be used."""
        self._trt, self._library = library(runtime), LIBRARIES[runtime]
        self._gpu = Device()
        log = _log(self._trt)
        self._runtime = self._trt.Runtime(log)
        data = plan.read_bytes()
        self._engine: Any = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"{self._library.name} {self._trt.__version__} can't load {plan.name} on {self._gpu.name}, SM "
                f"{self._gpu.target}; it was built{_built(built_with, targets)}: {log.reason()}"
            )
        stat = getattr(self._trt, "EngineStat", None)
        if stat is not None and self._engine.get_engine_stat(stat.STRIPPED_WEIGHTS_SIZE) > 0:
            raise BackendError(f"{plan.name} was built without its weights: a host has to put them back first.")
        self._cache = _KernelCache(self._engine, data, self._trt, self._gpu) if runtime == "tensorrt-rtx" else None
        config = () if self._cache is None else (self._cache.config,)
        self._context: Any = self._engine.create_execution_context(*config)
        if self._context is None:
            raise BackendError(f"{self._library.name} has no room for {plan.name}: {log.reason()}")
        self._log, self._plan, self._precision = log, plan.name, precision
        self._buffers = _Buffers(self._gpu)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == self._trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def describe(self) -> str:
        return f"{self._library.name} {self._trt.__version__}, {self._gpu.name}, {self._precision}"

    def run(self, feeds: Arrays) -> dict[str, Array]:
        given = {name: self._array(name, feeds) for name in self._inputs}
        shapes = {name: array.shape for name, array in given.items()}
        is_new = shapes != self._shapes
        if is_new:
            self._set_shapes(shapes)
        for name, array in given.items():
            self._gpu.to_device(self._bound(name, array), array)
        answers = {name: self._empty(name) for name in self._outputs}
        addresses = {name: self._bound(name, array) for name, array in answers.items()}
        if not self._context.execute_async_v3(self._gpu.stream):
            raise BackendError(f"{self._library.name} failed to run {self._plan}: {self._log.reason()}")
        for name, array in answers.items():
            self._gpu.to_host(array, addresses[name])
        self._gpu.wait()
        if is_new and self._cache is not None:
            self._cache.keep()
        return answers

    def _array(self, name: str, feeds: Arrays) -> Array:
        if name not in feeds:
            raise BackendError(f"{self._plan} failed to run: no {name} was given.")
        wanted = self._dtype(name)
        if feeds[name].dtype != wanted:
            raise BackendError(f"{self._plan} failed to run: {name} is {feeds[name].dtype}, needed {wanted}.")
        return np.ascontiguousarray(feeds[name])

    def _empty(self, name: str) -> Array:
        return np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name))

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self._engine.get_tensor_dtype(name).name])

    def _bound(self, name: str, array: Array) -> int:
        """The tensor's place on the GPU, which the engine is told whenever it is a new one."""
        address, is_new = self._buffers.hold(name, array.nbytes)
        if is_new and not self._context.set_tensor_address(name, address):
            raise BackendError(f"{self._library.name} takes no buffer for {name}: {self._log.reason()}")
        return address

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = {}  # until all are set
        profile = self._profile_for(shapes)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._gpu.stream):
                raise BackendError(f"{self._plan} has no profile {profile}: {self._log.reason()}")
            self._gpu.wait()
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"{self._plan} does not take {name} of shape {shape}: {self._log.reason()}")
        self._shapes = shapes

    def _profile_for(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """The first profile that holds every shape: the engine itself knows, a bundle's manifest only repeats it."""
        if self._engine.num_optimization_profiles == 1:
            return 0  # and `set_input_shape` refuses what it does not hold
        ranges = []
        for profile in range(self._engine.num_optimization_profiles):
            held = {name: self._engine.get_tensor_profile_shape(name, profile) for name in shapes}
            if all(_within(shape, *held[name]) for name, shape in shapes.items()):
                return profile
            ranges.append(", ".join(f"{name} {tuple(low)} to {tuple(high)}" for name, (low, _, high) in held.items()))
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise BackendError(f"{self._plan} has no profile for {given}; it takes {' or '.join(ranges)}.")


def _within(shape: tuple[int, ...], low: Any, opt: Any, high: Any) -> bool:
    del opt
    return len(shape) == len(low) and all(a <= extent <= b for a, extent, b in zip(low, shape, high, strict=True))


def _built(built_with: str, targets: tuple[str, ...]) -> str:
    made = f" with {built_with}" if built_with else ""
    return f"{made} for SM {', '.join(targets)}" if targets else f"{made} for another GPU or version"


class _Buffers:
    """Device memory by tensor. Grows and never shrinks; given back with the runner that it belongs to."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._held: dict[str, tuple[int, int]] = {}
        weakref.finalize(self, _release, gpu, self._held)

    def hold(self, name: str, size: int) -> tuple[int, bool]:
        """(address, whether it is a new one)"""
        address, capacity = self._held.get(name, (0, 0))
        if size <= capacity:
            return address, False
        if address:
            self._gpu.call("cudaFree", self._held.pop(name)[0])
        self._held[name] = (int(self._gpu.call("cudaMalloc", size)), size)
        return self._held[name][0], True


def _release(gpu: Device, held: dict[str, tuple[int, int]]) -> None:
    with suppress(BackendError):  # the driver may have gone before us
        for address, _ in held.values():
            gpu.call("cudaFree", address)
        gpu.call("cudaStreamDestroy", gpu.stream)


class _KernelCache:
    """TensorRT-RTX compiles an engine for its GPU at first use: kept between processes, outside the bundle."""

    def __init__(self, engine: Any, plan: bytes, trt: Any, gpu: Device) -> None:
        self.config: Any = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        key = hashlib.sha256(plan)
        key.update(f"{trt.__version__} {gpu.name} {gpu.target}".encode())
        self._path = _cache_folder() / f"{key.hexdigest()}.kernels"
        with suppress(OSError):  # none yet; the library checks what it is given, and refuses what is not for it
            self._cache.deserialize(self._path.read_bytes())
        self.config.set_runtime_cache(self._cache)
        # By default kernels for a new shape are compiled beside the first runs, which are slower and then change.
        self.config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER

    def keep(self) -> None:
        """Write down what has been compiled; a folder that can't be written costs the next process its time."""
        blob = self._cache.serialize()
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as stream:
                stream.write(memoryview(blob))
            Path(stream.name).replace(self._path)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ropevit-export"


def _log(trt: Any) -> Any:
    """A logger that keeps errors. Its base class exists only once the library is imported."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message.strip())

        def reason(self) -> str:
            """The first error since the last was asked for: those after it follow from it."""
            first = self.errors[0][:400] if self.errors else "it gave no reason"
            self.errors.clear()
            return first

    return Log()
