"""TensorRT 10 and 11: engines for the GPU of the machine that builds them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ropevit_export.backends import layer_report
from ropevit_export.backends.engine_runner import EngineRunner
from ropevit_export.backends.nvinfer import COMMON_OPTIONS, Layers, NvinferBuilder
from ropevit_export.errors import BackendError
from ropevit_export.machine import gpu
from ropevit_export.request import EngineSpec
from ropevit_export.values import Precision

_INSTALL = "pip install 'ropevit-export[tensorrt]', whose libraries are in NVIDIA's own package index"
_OLDEST = (10, 13)  # whose parser reads these graphs
# The first compute capability with a format.
_SINCE: dict[Precision, int] = {"bf16": 80, "fp8": 89}
_HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}


class TensorRt(NvinferBuilder):
    """Builds on a GPU, for it, by timing kernels: only with a pinned timing cache do two builds give the same bytes."""

    runtime = "tensorrt"
    title = "TensorRT"
    suffix = ".engine"
    options = COMMON_OPTIONS | {"hardware_compatibility", "timing_cache"}
    has_lean_runtime = True

    def __init__(self) -> None:
        try:
            import tensorrt
        except Exception as error:  # a broken installation raises anything
            raise BackendError(f"TensorRT can't be imported ({error}): {_INSTALL}") from error
        found = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
        if found < _OLDEST:
            raise BackendError(f"TensorRT {tensorrt.__version__} is installed, needed 10.13 or newer: {_INSTALL}")
        device = gpu.present()
        if device is None:
            raise BackendError("TensorRT builds only where a GPU is, and nvidia-smi finds none here.")
        super().__init__(tensorrt)
        self._device = device
        self.all_targets: tuple[str, ...] = (device.compute_capability,)

    @property
    def version(self) -> str:
        return f"{super().version}, {self._device}"

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        """The GPU's own, or those asked for, which `check` has found to run the plan as well."""
        return spec.targets or self.all_targets

    def check(self, spec: EngineSpec) -> None:
        """What depends on this machine's GPU can't be seen from the command line: it is a failed stage."""
        here = self._device.compute_capability
        ampere_plus = spec.options.hardware_compatibility == "ampere-plus"
        others = [each for each in spec.targets if each != here and not (ampere_plus and int(each) >= 80)]
        if others:
            raise BackendError(
                f"TensorRT builds for the GPU it runs on, {self._device}, but --sm asks for {', '.join(others)}: "
                "build there, or with --hardware-compatibility ampere-plus, or --engine tensorrt-rtx."
            )
        since = _SINCE.get(spec.precision, 0)
        if int(here) < since:
            raise BackendError(f"{self._device} has no {spec.precision}: it begins with SM {since}; use fp16 or int8.")
        if ampere_plus and int(here) < 80:
            raise BackendError(f"--hardware-compatibility ampere-plus needs SM 80 or newer, this is {self._device}.")
        cache = spec.options.timing_cache
        if cache is not None and cache.sha256 is not None:
            self._pinned(spec)

    def runner(self, path: Path, precision: Precision) -> EngineRunner:
        return EngineRunner(path, runtime=self.runtime, precision=precision)

    def _aim(self, config: Any, spec: EngineSpec) -> None:
        trt, options = self._trt, spec.options
        if options.hardware_compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, _HARDWARE[options.hardware_compatibility])
            config.hardware_compatibility_level = level
        if options.timing_cache is None:
            return
        if options.timing_cache.sha256 is not None:
            config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
            stored = self._pinned(spec)
        else:
            path = options.timing_cache.path
            stored = path.read_bytes() if path.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
            raise BackendError(
                f"the timing cache {options.timing_cache.path} is of another GPU, CUDA or TensorRT than "
                f"{self.version}: name another file."
            )

    def _finish(self, config: Any, spec: EngineSpec) -> None:
        """Keep what was timed, unless the cache is pinned. A reader sees the old file or the new one, whole."""
        cache = spec.options.timing_cache
        if cache is None or cache.sha256 is not None:
            return
        cache.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.path.parent, delete=False) as stream:
            stream.write(memoryview(config.get_timing_cache().serialize()))
        os.replace(stream.name, cache.path)  # noqa: PTH105 - a NamedTemporaryFile's name is a string

    def _pinned(self, spec: EngineSpec) -> bytes:
        """The bytes of a timing cache that must be the one it was. Raises BackendError."""
        cache = spec.options.timing_cache
        assert cache is not None
        if not cache.path.is_file():
            raise BackendError(f"the timing cache {cache.path} is pinned by its hash, but there is no such file.")
        stored = cache.path.read_bytes()
        found = hashlib.sha256(stored).hexdigest()
        if found != cache.sha256:
            raise BackendError(
                f"the timing cache {cache.path} was pinned as {cache.sha256}, its SHA-256 is {found}: it has changed."
            )
        return stored

    def _remark(self, spec: EngineSpec) -> str | None:
        cache = spec.options.timing_cache
        if cache is not None and cache.sha256 is not None:
            return None
        return "kernels were chosen by timing them: a second build can differ; pin a --timing-cache by its SHA-256"

    def _layers(self, log: Any, plan: Any) -> Layers:
        trt = self._trt
        engine = trt.Runtime(log).deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(f"TensorRT can't load the engine that it has built: {log.last_error()}")
        inspector = engine.create_engine_inspector()
        return layer_report.from_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
