"""TensorRT-RTX: builds engines for other machines' GPUs, on a machine that has none."""

from __future__ import annotations

from typing import Any

from ropevit_export.backends import layer_report
from ropevit_export.backends.nvinfer import COMMON_OPTIONS, Layers, NvinferBuilder
from ropevit_export.errors import BackendError, UsageError
from ropevit_export.machine import gpu
from ropevit_export.request import EngineSpec

# Turing builds are larger and have no float32 matrix product: on request only.
_ON_REQUEST = ("75",)
_NO_FP8 = ("75", "80", "86")


class TensorRtRtx(NvinferBuilder):
    """Ahead-of-time builder. The same input gives the same bytes, so there is nothing to time and to keep."""

    runtime = "tensorrt-rtx"
    title = "TensorRT-RTX"
    suffix = ".rtx.engine"
    options = COMMON_OPTIONS
    has_lean_runtime = False

    def __init__(self) -> None:
        try:
            import tensorrt_rtx
        except Exception as error:  # a broken installation raises anything
            raise BackendError(
                f"TensorRT-RTX can't be imported ({error}): pip install tensorrt-rtx-cu13 (x86-64 Linux or Windows)"
            ) from error
        super().__init__(tensorrt_rtx)
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
        if (spec.options.strip_weights or spec.options.refit) and gpu.present() is None:
            raise BackendError(
                "TensorRT-RTX makes stripped and refittable plans only where a GPU is, and this machine has none: "
                "leave --strip-weights and --refit out, or build on the target."
            )

    def _aim(self, config: Any, spec: EngineSpec) -> None:
        targets = self.targets(spec)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(self._trt.ComputeCapability, f"SM{target}"), index)

    def _layers(self, log: Any, plan: Any) -> Layers:
        return layer_report.parse(log.layers())
