"""TensorRT-RTX: builds engines for other machines' GPUs, on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ropevit_export.backends import layer_report
from ropevit_export.errors import BackendError, UsageError
from ropevit_export.values import EngineSpec, Plan

# Turing builds are larger and have no float32 matrix product: on request only.
_ON_REQUEST = ("75",)
_NO_FP8 = ("75", "80", "86")


class TensorRtRtx:
    """Ahead-of-time builder. Engines are strongly typed: they compute in what the graph says, TF32 off."""

    runtime = "tensorrt-rtx"
    suffix = ".rtx.engine"

    def __init__(self) -> None:
        try:
            import tensorrt_rtx
        except ImportError as error:
            raise BackendError(
                f"TensorRT-RTX can't be imported ({error}): pip install tensorrt-rtx-cu13 (x86-64 Linux or Windows)"
            ) from error
        self._trt: Any = tensorrt_rtx
        known = [name for name in dir(tensorrt_rtx.ComputeCapability) if name.startswith("SM")]
        self.all_targets: tuple[str, ...] = tuple(sorted((name[2:] for name in known), key=int))

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        """The targets asked for, else every one but Turing, as far as they have the precision."""
        missing = (*_ON_REQUEST, *_NO_FP8) if spec.precision == "fp8" else _ON_REQUEST
        return spec.targets or tuple(target for target in self.all_targets if target not in missing)

    def check(self, spec: EngineSpec) -> None:
        unknown = [target for target in spec.targets if target not in self.all_targets]
        if unknown:
            raise UsageError(
                f"TensorRT-RTX can't build for SM {', '.join(unknown)}; it knows {', '.join(self.all_targets)}. "
                "Hopper and data-centre Blackwell need TensorRT."
            )
        if "75" in spec.targets and spec.precision == "fp32":
            raise UsageError("SM 75 (Turing) has no float32 matrix product in TensorRT-RTX: use --precision fp16.")
        if spec.require_fused_attention and spec.precision == "fp32":
            raise UsageError("TensorRT-RTX has no fused attention for float32: use --precision fp16 or bf16.")
        lacking = [target for target in spec.targets if target in _NO_FP8]
        if spec.precision == "fp8" and lacking:
            raise UsageError(f"SM {', '.join(lacking)} has no fp8: it begins with SM 89; use --precision int8.")
        if "75" in spec.targets and spec.precision == "bf16":
            raise UsageError("SM 75 (Turing) has no bfloat16: use --precision fp16.")

    def build(self, onnx: Path, spec: EngineSpec) -> Plan:
        """Compile the ONNX file; minutes at most, no GPU needed. Raises BackendError with the builder's own words."""
        trt, log = self._trt, _log(self._trt)
        builder = trt.Builder(log)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx)):
            errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise BackendError(f"TensorRT-RTX can't read {onnx.name}: {errors[:400]}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        targets = self.targets(spec)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), index)
        for wanted in spec.profiles:
            profile = builder.create_optimization_profile()
            for name, shapes in wanted.shapes.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"TensorRT-RTX failed to build {onnx.name}: {log.last_error()}")
        return Plan(
            data=memoryview(plan),
            layers=layer_report.parse(log.layers()),
            built_with=f"tensorrt-rtx {trt.__version__}, TF32 off",
            targets=targets,
        )


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
