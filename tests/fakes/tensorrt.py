"""TensorRT's Python module as far as a build touches it, with the names that a release really has.

Names are recorded (`tensorrt_names.json`) from NVIDIA's Python API documentation and its list of what TensorRT 11 has
removed. Any other name is an AttributeError, as in the library; what is called is written down.
"""

from __future__ import annotations

import enum
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
LAYER = {
    "Name": "gemm_0",
    "LayerType": "gemm",
    "TacticName": "sm90_xmma_gemm",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: node_matmul]\x1f[ONNX Layer: node_add]",
}


def module(  # noqa: C901 - its classes belong to one release
    version: str, *, stored_cache: bytes = b"timed", fails: str | None = None
) -> ModuleType:
    """`fails`: the builder's last words, in place of an engine."""
    made = ModuleType("tensorrt")
    trt: Any = made
    trt.__version__ = version
    trt.__spec__ = ModuleSpec("tensorrt", None)
    ten = version.startswith("10.")
    names = NAMES[version.split(".")[0]]
    calls: list[tuple[Any, ...]] = []
    trt.calls = calls
    for name in ("BuilderFlag", "NetworkDefinitionCreationFlag"):
        setattr(trt, name, _enum(name, names[name]))
    trt.MemoryPoolType = _enum("MemoryPoolType", ["WORKSPACE", "DLA_MANAGED_SRAM", "TACTIC_SHARED_MEMORY"])
    trt.ProfilingVerbosity = _enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
    trt.HardwareCompatibilityLevel = _enum(
        "HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
    )
    trt.LayerInformationFormat = _enum("LayerInformationFormat", ["ONELINE", "JSON"])

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None: ...

    class Config(_Recorder):
        _names = frozenset(names["IBuilderConfig"])
        _calls = calls

        def create_timing_cache(self, stored: bytes) -> bytes:
            calls.append(("create_timing_cache", stored))
            return stored

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            calls.append(("set_timing_cache", cache, ignore_mismatch))
            return cache != b"of another GPU"

        def get_timing_cache(self) -> Any:
            return _Serialized(stored_cache)

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            calls.append(("set_shape", name, *shapes))

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self._log: Any = log

        def create_network(self, flags: int) -> None:
            calls.append(("create_network", flags))

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: object, config: Config) -> bytes | None:
            if fails is not None:
                self._log.log(ILogger.ERROR, fails)
                return None
            return b"ftrt" + bytes(60)

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: object, log: ILogger) -> None: ...

        def parse_from_file(self, path: str) -> bool:
            calls.append(("parse_from_file", path))
            return True

    class Inspector:
        def get_engine_information(self, form: enum.IntEnum) -> str:
            assert form == trt.LayerInformationFormat.JSON
            sides = {side: [_tensor(side, ten)] for side in ("Inputs", "Outputs")}
            return json.dumps({"Layers": [LAYER | sides], "Bindings" if ten else "I/O Tensors": []})

    class Engine:
        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    class Runtime:
        def __init__(self, log: ILogger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            return Engine()

    for each in (ILogger, Builder, OnnxParser, Runtime):
        setattr(trt, each.__name__, each)
    return made


class _Recorder:
    """Attributes of the names that exist: a property keeps what is set, a method writes its call down."""

    _names: frozenset[str]
    _calls: list[tuple[Any, ...]]

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"IBuilderConfig has no {name} in this release")
        return lambda *given: self._calls.append((name, *given))

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._names:
            raise AttributeError(f"IBuilderConfig has no {name} in this release")
        self._calls.append((name, value))


class _Serialized:
    def __init__(self, stored: bytes) -> None:
        self._stored = stored

    def serialize(self) -> bytes:
        return self._stored


def _enum(name: str, members: list[str]) -> type[enum.IntEnum]:
    made: Any = enum.IntEnum  # called with a name that is known only here, it makes an enumeration of that name
    found: type[enum.IntEnum] = made(name, {member: value for value, member in enumerate(members)})
    return found


def _tensor(side: str, ten: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"Name": side.lower(), "Location": "Device", "Dimensions": [1, 65, 48]}
    if ten:
        words = {"Inputs": "Row major linear FP32", "Outputs": "Float"}
        return named | {"Format/Datatype": words[side]}
    return named | {"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Float"}
