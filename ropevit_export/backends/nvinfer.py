"""What TensorRT and TensorRT-RTX share: one parser, one configuration, one build.

Both are strongly typed here: engines compute in what the graph says. Flags are referred to by name, since their values
moved between releases, and only by names that TensorRT 10, 11 and TensorRT-RTX all have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropevit_export.errors import BackendError
from ropevit_export.machine import files
from ropevit_export.request import EngineSpec
from ropevit_export.values import Form, Plan, Precision

if TYPE_CHECKING:
    from ropevit_export.backends.base import Runner

COMMON_OPTIONS = frozenset(
    {"targets", "require_fused_attention", "workspace", "version_compatible", "strip_weights", "refit", "tf32"}
)
Layers = Sequence[Mapping[str, object]]


class NvinferBuilder:
    """`trt`: the library's module. A subclass says what it builds for, and how the result is listed."""

    runtime: str
    title: str
    suffix: str
    form: Form = "portable"
    options: frozenset[str]
    has_lean_runtime: bool  # which a version compatible plan then carries, for later releases to run it

    def __init__(self, trt: Any) -> None:
        self._trt = trt

    @property
    def version(self) -> str:
        return f"{self.runtime} {self._trt.__version__}"

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        raise NotImplementedError

    def runner(self, path: Path, precision: Precision) -> Runner | None:
        """None: engines for other machines are not run where they are built."""
        return None

    def _aim(self, config: Any, spec: EngineSpec) -> None:
        """Tell the configuration what GPUs the engine is for."""
        raise NotImplementedError

    def _layers(self, log: Any, plan: Any) -> Layers:
        raise NotImplementedError

    def build(self, onnx: Path, spec: EngineSpec, path: Path) -> Plan:
        """Compile the ONNX file and write the plan. Raises BackendError with the builder's own words."""
        trt, log = self._trt, _log(self._trt)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx)):
            errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise BackendError(f"{self.title} can't read {onnx.name}: {errors[:400]}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._aim(config, spec)
        self._set(config, spec)
        for wanted in spec.profiles:
            profile = builder.create_optimization_profile()
            for name, shapes in wanted.shapes.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"{self.title} failed to build {onnx.name}: {log.last_error()}")
        self._finish(config, spec)
        files.write(path, memoryview(plan))
        return Plan(
            files=(path,),
            layers=tuple(self._layers(log, plan)),
            built_with=f"{self.version}, TF32 {'on' if spec.options.tf32 else 'off'}",
            targets=self.targets(spec),
            remark=self._remark(spec),
        )

    def _set(self, config: Any, spec: EngineSpec) -> None:
        trt, options = self._trt, spec.options
        flags = {
            "TF32": options.tf32,
            "VERSION_COMPATIBLE": options.version_compatible,
            "EXCLUDE_LEAN_RUNTIME": options.version_compatible and not self.has_lean_runtime,
            "STRIP_PLAN": options.strip_weights,
            "REFIT": options.refit,
            "REFIT_IDENTICAL": options.strip_weights and not options.refit,
        }
        for name, wanted in flags.items():
            if wanted:
                config.set_flag(getattr(trt.BuilderFlag, name))
        if not options.tf32:  # on by default
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)

    def _finish(self, config: Any, spec: EngineSpec) -> None:
        """After a build that succeeded."""

    def _remark(self, spec: EngineSpec) -> str | None:
        """Why a second build may give other bytes; None where it does not."""
        return None


def _strongly_typed(trt: Any) -> int:
    """TensorRT 10 wants the flag; where it is gone, nothing else exists."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _log(trt: Any) -> Any:
    """A logger that keeps what the builder says. Its base class exists only once the library is imported."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

        def last_error(self) -> str:
            errors = [line for severity, line in self.lines if severity <= trt.ILogger.ERROR]
            return errors[-1].strip()[:400] if errors else "it gave no reason"

        def layers(self) -> str:
            reports = [line for _, line in self.lines if line.lstrip().startswith("Layers:")]
            return reports[-1] if reports else ""

    return Log()
