"""OpenVINO, on the CPU or another of its devices: runs ONNX files and its own IR, and writes IR."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ropevit_export.errors import BackendError, UnreadableError, last_line
from ropevit_export.formats import EIGHT_BITS, FORMATS
from ropevit_export.machine.files import without_links
from ropevit_export.machine.process import signal_stack_kept
from ropevit_export.request import EngineSpec
from ropevit_export.values import Form, Plan, Precision

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays

# What to compute in, by the graph's precision. Left to itself OpenVINO takes bfloat16 for a float32 graph where the CPU
# has it; asked for float16 where it hasn't, it takes bfloat16 too, silently.
_COMPUTE = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32", "fp8": "f32"}
# What a CPU makes of a format, by the one it was asked for in: float16 and 8-bit floats are widened there, while the
# hint for bfloat16 narrows what the graph keeps in float32.
_PROMOTIONS: dict[str, dict[str, str]] = {
    "fp16": {"fp16": "fp32"},
    "bf16": {"fp32": "bf16"},
    "int8": {"fp16": "fp32"},
    "fp8": {"fp8": "fp32", "fp16": "fp32"},
}
_REPORTED = {each.openvino: each.report for each in FORMATS.values()}


class OpenVino:
    """A compiled graph. What it computes in is asked for and, because a device may do otherwise, read back.

    compute   "f32" or "bf16": of what the graph has in floating point; default: what its precision says. "bf16" is
              faster on a CPU that has it, and float32's proof does not cover it
    threads   default: all cores
    streams   answers that are computed side by side, each by a part of the threads, where `run` is called by as many
    """

    def __init__(
        self,
        model: Path,
        device: str = "CPU",
        *,
        precision: str = "fp32",
        compute: str | None = None,
        threads: int | None = None,
        streams: int = 1,
    ) -> None:
        openvino = _library()
        wanted = compute or _COMPUTE[precision]
        if wanted not in ("f32", "bf16"):
            raise BackendError(f"OpenVINO was asked to compute in {wanted!r}: it takes f32 or bf16.")
        hints = {"INFERENCE_PRECISION_HINT": wanted, "PERFORMANCE_HINT": "LATENCY"}
        if streams > 1:
            hints = {"INFERENCE_PRECISION_HINT": wanted, "NUM_STREAMS": str(streams)}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            core = openvino.Core()
            with without_links(model) as file, signal_stack_kept():
                self._compiled: Any = core.compile_model(_read(core, file), device, hints)
            taken = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except UnreadableError:
            raise
        except Exception as error:  # RuntimeError of several kinds
            raise BackendError(f"OpenVINO refuses {model.name}: {last_line(error)}") from error
        if taken != wanted:
            raise BackendError(f"asked OpenVINO to compute {model.name} in {wanted}, {device} takes {taken}.")
        self._requests = threading.local()  # one a thread: it can't be shared while it runs
        self._inputs = {each.get_any_name() for each in self._compiled.inputs}
        self._outputs = [each.get_any_name() for each in self._compiled.outputs]
        bfloat16 = [each for each in self._compiled.outputs if each.get_element_type().get_type_name() == "bf16"]
        self._bfloat16 = {each.get_any_name() for each in bfloat16}
        self._describe = f"OpenVINO {openvino.__version__.split('-')[0]}, {device}, computed in {taken}"
        if precision in EIGHT_BITS:
            self._describe += f" around {precision} codes"
        if streams > 1:
            self._describe += f", {streams} streams"
        if precision == "fp16":
            self._describe += ", float16 weights: no proof against overflow"

    @property
    def describe(self) -> str:
        return self._describe

    def run(self, feeds: Arrays) -> dict[str, Array]:
        missing = self._inputs - feeds.keys()
        if missing:  # OpenVINO would go on with whatever was there
            raise BackendError(f"OpenVINO failed to run: no {', '.join(sorted(missing))} was given.")
        try:
            if not hasattr(self._requests, "own"):
                self._requests.own = self._compiled.create_infer_request()
            found = self._requests.own.infer(dict(feeds))
            answers = {name: np.array(found[name]) for name in self._outputs}
        except Exception as error:
            raise BackendError(f"OpenVINO failed to run: {last_line(error)}") from error
        # it calls the bits of bfloat16 float16
        return answers | {name: answers[name].view(ml_dtypes.bfloat16) for name in self._bfloat16}


def _read(core: Any, file: Path) -> Any:
    try:
        return core.read_model(str(file))
    except Exception as error:  # RuntimeError of several kinds
        raise UnreadableError(f"OpenVINO can't read {file.name}: {last_line(error)}") from error


def quantize(model: Path, path: Path, feeds: Sequence[Arrays]) -> None:
    """What NNCF makes of a float32 graph with ranges measured on `feeds`, as IR: 8 bits as it chooses for transformers.
    Raises BackendError where it is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise BackendError(f"NNCF can't be imported ({error}): pip install 'ropevit-export[peers]'") from error
    openvino = _library()
    exact = openvino.Core().read_model(str(model))
    made = nncf.quantize(
        exact, nncf.Dataset(list(feeds)), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds)
    )
    openvino.save_model(made, str(path), compress_to_fp16=False)


class OpenVinoBuilder:
    """Writes IR (`.xml`, weights in a `.bin` beside it): OpenVINO starts from it without its ONNX reader.

    Formats are the graph's; a device may widen what it has no arithmetic for, which `Plan.promotions` tells of a CPU.
    """

    runtime = "openvino"
    suffix = ".xml"
    form: Form = "openvino"
    all_targets: tuple[str, ...] = ()
    options = frozenset({"require_fused_attention"})

    def __init__(self) -> None:
        self._openvino = _library()

    @property
    def version(self) -> str:
        return f"openvino {self._openvino.__version__.split('-')[0]}"

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        return ()

    def check(self, spec: EngineSpec) -> None:
        """Everything can be asked of it."""

    def build(self, onnx: Path, spec: EngineSpec, path: Path) -> Plan:
        core = self._openvino.Core()
        try:
            self._openvino.save_model(core.read_model(str(onnx)), str(path), compress_to_fp16=False)
            hint = {"INFERENCE_PRECISION_HINT": _COMPUTE[spec.precision]}
            with signal_stack_kept():
                compiled = core.compile_model(str(path), "CPU", hint)
        except Exception as error:  # RuntimeError of several kinds
            raise BackendError(f"OpenVINO failed to build {onnx.name}: {last_line(error)}") from error
        return Plan(
            files=(path, path.with_suffix(".bin")),
            layers=tuple(_layers(compiled.get_runtime_model())),
            built_with=self.version,
            targets=(),
            promotions=_PROMOTIONS.get(spec.precision, {}),
        )

    def runner(self, path: Path, precision: Precision) -> OpenVino:
        return OpenVino(path, precision=precision)


def _layers(executed: Any) -> Iterator[dict[str, object]]:
    """What the CPU runs, in the form of `backends.layer_report`."""
    for op in executed.get_ordered_ops():
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        if facts["layerType"] in ("Const", "Input", "Output"):
            continue
        sources = [(value, value.get_node()) for value in op.input_values()]
        constant = {id(node): node.get_rt_info()["layerType"].astype(str) == "Const" for _, node in sources}
        yield {
            "name": op.get_friendly_name(),
            "type": facts["layerType"],
            "inputs": [_tensor(value, node) for value, node in sources if not constant[id(node)]],
            "constants": [_tensor(value, node) for value, node in sources if constant[id(node)]],
            "outputs": [_tensor(value, op) for value in op.outputs()],
            "tactic": facts["primitiveType"],
            # a node that became several has a suffix
            "onnx_nodes": [name.split("/")[0] for name in facts["originalLayersNames"].split(",") if name],
        }


def _tensor(value: Any, node: Any) -> dict[str, object]:
    kind = str(value.get_element_type().get_type_name())
    return {
        "name": node.get_friendly_name(),
        "shape": [extent.get_length() if extent.is_static else "-1" for extent in value.get_partial_shape()],
        "dtype": _REPORTED.get(kind, kind),
        "format": "",
    }


def _library() -> Any:
    try:
        import openvino
    except Exception as error:  # a broken installation raises anything
        raise BackendError(f"OpenVINO can't be imported ({error}): pip install 'ropevit-export[openvino]'") from error
    return openvino


def devices() -> list[str]:
    """What OpenVINO can compile for here, such as CPU, GPU and NPU."""
    return list(_library().Core().available_devices)
