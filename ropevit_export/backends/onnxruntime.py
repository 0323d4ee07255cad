"""ONNX Runtime, on the CPU or another of its providers."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropevit_export.errors import BackendError, first_line
from ropevit_export.formats import EIGHT_BITS
from ropevit_export.machine import hardware

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """`package` has it. `plugin`: the module of a package that adds it to any build of ONNX Runtime."""

    name: str
    package: str
    plugin: str | None = None
    gpu: bool = True


# By the backend's name.
PROVIDERS = {
    "onnxruntime": Provider(name=CPU, package="onnxruntime", gpu=False),
    "onnxruntime-cuda": Provider(name="CUDAExecutionProvider", package="onnxruntime-gpu"),
    "onnxruntime-tensorrt": Provider(name="TensorrtExecutionProvider", package="onnxruntime-gpu"),
    "onnxruntime-tensorrt-rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        package="onnxruntime-ep-nv-tensorrt-rtx",
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
    ),
    "onnxruntime-openvino": Provider(name="OpenVINOExecutionProvider", package="onnxruntime-openvino", gpu=False),
}
_BY_NAME = {each.name: each for each in PROVIDERS.values()}
# A float32 graph computes in float32: TF32 would keep ten bits of its products.
_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}


class OnnxRuntime:
    """A session. ONNX Runtime silently replaces a provider that it can't load, so what it loaded is compared.

    in_order  nodes run in the order of the graph: where it has hundreds of outputs, a seventh of the memory
    threads   of one answer on the CPU; default: all cores
    streams   answers that are computed side by side, each by a part of the threads, where `run` is called by as many
    """

    def __init__(
        self,
        model: Path,
        providers: Sequence[str] = (CPU,),
        *,
        precision: str = "fp32",
        optimise: bool = True,
        in_order: bool = False,
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        try:
            import onnxruntime
        except Exception as error:  # a broken installation raises anything
            raise BackendError(f"onnxruntime can't be imported ({error}): pip install onnxruntime") from error
        self._version = str(onnxruntime.__version__)
        self._providers = tuple(providers)
        self._precision = precision
        if precision == "bf16" and self._providers == (CPU,):
            raise BackendError(
                f"ONNX Runtime's CPU provider has no bfloat16 for {model.name}: use OpenVINO or another provider."
            )
        options = onnxruntime.SessionOptions()
        if not optimise or precision == "fp8":  # whose operators it has, but does not fuse
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        if in_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if streams > 1:
            threads = max(1, (threads or hardware.cores() or 1) // streams)
        if threads is not None:
            options.intra_op_num_threads = threads
        self._as_uint8 = precision == "int8" and self._providers == (CPU,) and hardware.cuts_8_bit_sums()
        if self._as_uint8:  # weights, whose sums are then exact, and slower
            options.add_session_config_entry("session.x64quantprecision", "1")
        if self._providers == (CPU,):
            self._session = _session(onnxruntime, model, options, self._providers)
        else:
            self._session = self._accelerated(onnxruntime, model, options)
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        if any(each.type == "tensor(bfloat16)" for each in tensors):
            raise BackendError(
                f"ONNX Runtime's Python interface has no bfloat16 arrays, which {model.name} takes or gives: use "
                "OpenVINO, or --io-precision fp32."
            )

    def _accelerated(self, onnxruntime: Any, model: Path, options: Any) -> Any:
        """A session on a provider that lies in a library of its own, which may need others that are not there."""
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        with _said_natively() as said:
            _load_libraries(onnxruntime, self._providers)
            available = [*onnxruntime.get_available_providers(), *_plugged_in(onnxruntime, self._providers)]
            missing = [name for name in self._providers if name not in available]
            if missing:
                raise BackendError(_not_in_build(missing[0], self._version, available))
            session = _session(onnxruntime, model, options, self._providers)
        loaded = session.get_providers()
        if loaded[: len(self._providers)] != list(self._providers):
            raise BackendError(
                f"asked ONNX Runtime for {', '.join(self._providers)}, it loaded {', '.join(loaded)}{_reason(said[0])}."
            )
        sys.stderr.write(said[0])  # of a session that works nevertheless
        return session

    @property
    def describe(self) -> str:
        return f"ONNX Runtime {self._version}, {', '.join(self._providers)}, {self._computed()}{self._elsewhere()}"

    def _computed(self) -> str:
        if self._precision in EIGHT_BITS:
            return f"{self._precision} linear layers{', weights as uint8 for want of VNNI' if self._as_uint8 else ''}"
        if self._precision != "fp32" and set(self._providers) <= {CPU, "OpenVINOExecutionProvider"}:
            return f"{self._precision} weights and values, computed mostly in float32: no proof against overflow"
        if self._precision != "fp32":
            return self._precision
        if "CUDAExecutionProvider" in self._providers:
            return "float32, TF32 off"
        if "TensorrtExecutionProvider" in self._providers:  # has no option for it
            return f"float32, TF32 {'off' if os.environ.get('NVIDIA_TF32_OVERRIDE') == '0' else 'on'}"
        return "float32"

    def _elsewhere(self) -> str:
        """How much of the graph the provider left to the CPU, where ONNX Runtime tells."""
        if self._providers == (CPU,) or not hasattr(self._session, "get_provider_graph_assignment_info"):
            return ""
        counts = [(each.ep_name, len(each.get_nodes())) for each in self._session.get_provider_graph_assignment_info()]
        on_cpu = sum(count for name, count in counts if name == CPU)
        return f", {on_cpu} of {sum(count for _, count in counts)} nodes on the CPU" if on_cpu else ""

    def run(self, feeds: Arrays) -> dict[str, Array]:
        names = [output.name for output in self._session.get_outputs()]
        try:
            return {
                name: np.asarray(answer)
                for name, answer in zip(names, self._session.run(names, dict(feeds)), strict=True)
            }
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed to run: {first_line(error)}") from error


def quantize_dynamically(model: Path, path: Path) -> None:
    """What ONNX Runtime's own tool makes of a float32 graph without calibration: its linear layers in 8 bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    loaded = onnx.load(model)
    del loaded.graph.value_info[:]  # shapes of weights that the tool transposes, and then finds contradicted
    quantize_dynamic(
        loaded,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def quantize_statically(model: Path, path: Path, feeds: Sequence[Arrays]) -> None:
    """What ONNX Runtime's own tool makes of a float32 graph with ranges measured on `feeds`: its linear layers in 8
    bits, between QuantizeLinear and DequantizeLinear.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> Arrays | None:
            return next(self._left, None)

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True, save_as_external_data=True)
    quantize_static(
        prepared,
        path,
        Reader(),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def _session(onnxruntime: Any, model: Path, options: Any, providers: Sequence[str]) -> Any:
    plugins = {each.name for each in PROVIDERS.values() if each.plugin}.intersection(providers)
    plugged = [each for each in _devices(onnxruntime) if each.ep_name in plugins]
    if plugged:  # such a provider is chosen by its devices
        options.add_provider_for_devices(plugged[:1], {})
        chosen: list[object] = []
    else:
        chosen = [(name, _OPTIONS.get(name, {})) for name in providers]
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=chosen)
    except Exception as error:  # its exceptions share no base class
        raise BackendError(f"ONNX Runtime refuses {model.name}: {first_line(error)}") from error


def _load_libraries(onnxruntime: Any, providers: Sequence[str]) -> None:
    """CUDA, cuDNN and TensorRT as pip installs them, where the system's loader does not look."""
    if any(_BY_NAME[name].gpu for name in providers if name in _BY_NAME) and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if "TensorrtExecutionProvider" in providers:
        with suppress(ImportError, OSError):
            import tensorrt  # noqa: F401


def _plugged_in(onnxruntime: Any, providers: Sequence[str]) -> set[str]:
    """The providers of packages beside ONNX Runtime, registered."""
    for wanted in (_BY_NAME[name] for name in providers if name in _BY_NAME):
        if wanted.plugin is None or wanted.name in {each.ep_name for each in _devices(onnxruntime)}:
            continue
        try:
            plugin = importlib.import_module(wanted.plugin)
        except ImportError:
            continue  # the caller says that there is no such provider
        try:
            onnxruntime.register_execution_provider_library(wanted.name, plugin.get_library_path())
        except Exception as error:
            raise BackendError(
                f"{wanted.package} can't be loaded{_reason(str(error)) or f': {first_line(error)}'}."
            ) from error
        if wanted.name not in {each.ep_name for each in _devices(onnxruntime)}:
            raise BackendError(f"{wanted.package} finds no GPU that it can use.")
    return {each.ep_name for each in _devices(onnxruntime)}


def _devices(onnxruntime: Any) -> list[Any]:
    return list(onnxruntime.get_ep_devices()) if hasattr(onnxruntime, "get_ep_devices") else []


def _not_in_build(name: str, version: str, available: Sequence[str]) -> str:
    text = f"this ONNX Runtime {version} has no {name}, only {', '.join(dict.fromkeys(available))}"
    known = _BY_NAME.get(name)
    if known is None:
        return f"{text}."
    if known.plugin:
        return f"{text}: pip install {known.package}"
    return f"{text}: pip install {known.package} in an environment without another onnxruntime"


@contextmanager
def _said_natively() -> Iterator[list[str]]:
    """What C++ prints on stderr, where ONNX Runtime gives its reasons and nowhere else: whole once the block is left.

    What its Python part prints on stdout beside that is dropped.
    """
    said = [""]
    with tempfile.TemporaryFile() as stream, redirect_stdout(io.StringIO()):
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(stream.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            stream.seek(0)
            said[0] = stream.read().decode(errors="replace")


def _reason(said: str) -> str:
    """Of what ONNX Runtime printed, why a library could not be loaded, or its last error."""
    missing = re.findall(r"with error: ([^\n]*?)[\s')]*$", said, re.MULTILINE)
    if missing:
        return f": {first_line(missing[-1])}{_cure(missing[-1])}"
    errors = re.findall(r"\[E:[^\n]*\] ([^\n]+)", said)
    return f": {first_line(errors[-1])}" if errors else ""


def _cure(missing: str) -> str:
    """What to install for a library that is missing."""
    if "libcuda.so" in missing:
        return ": there is no NVIDIA driver"
    if found := re.search(r"libnvinfer\.so\.(\d+)", missing):
        return f": pip install 'tensorrt-cu13=={found[1]}.*'"
    if "libcu" in missing or "libnv" in missing:
        return ": pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return ""
