"""The kernels of an engine and what they move, from the builder's layer report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError, first_fault
from ropevit_export.formats import FORMATS
from ropevit_export.machine import files

# A report of 10,000 kernels has 20 MB; no tensor of an engine has more than 2^31 numbers along an axis, or more axes.
_LARGEST, _LARGEST_EXTENT, _MOST_AXES = 64 * files.MB, 2**31, 16
_Extent = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_EXTENT)]
# Our name of a number format and the bytes of a value, by the builder's name.
_FORMATS = {each.report: (each.name, each.bytes) for each in FORMATS.values()}
# Kernels that multiply; generated ones only move and combine, apart from fused attention.
_MULTIPLYING = frozenset({"runtime_fusion", "gemm", "correlation"}) | {
    "FullyConnected", "Convolution", "MatMul", "Subgraph",  # OpenVINO
}  # fmt: skip
_FUSED_ATTENTION = "mha"
# TensorRT appends the profile's index and the kernel's own.
_PROFILE = re.compile(r"_myl(\d{1,9})_\d+$", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """What a kernel reads or writes. `bytes`: None where the builder names no extent."""

    name: str
    format: str
    width: int
    shape: tuple[int | str, ...]

    @property
    def bytes(self) -> int | None:
        known = [extent for extent in self.shape if isinstance(extent, int)]
        return math.prod(known) * self.width if len(known) == len(self.shape) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One kernel. `profile`: index of the optimization profile it is for. `nodes`: ONNX nodes behind it, by name."""

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def profile(self) -> int:
        found = _PROFILE.search(self.name)
        return int(found[1]) if found else 0

    @property
    def is_fused_attention(self) -> bool:
        """By its name in TensorRT; other builders' names say nothing."""
        return _FUSED_ATTENTION in self.name

    @property
    def multiplies(self) -> bool:
        return self.type in _MULTIPLYING or self.is_fused_attention

    @property
    def multiplied(self) -> str:
        """The format of what it multiplies, if it does: beside its factors it may read a wider residual to add."""
        return min(self.inputs, key=lambda each: each.width).format if self.inputs else self.written

    @property
    def written(self) -> str:
        """The format of its first result; a kernel without one computes shapes."""
        return self.outputs[0].format if self.outputs else "fp32"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.inputs, *self.constants, *self.outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes that kernels move in one inference, every kernel for itself: a weight that two read counts twice.

    `unknown`: tensors that are in none of these, because an extent depends on the input.
    """

    read: int = 0
    constants: int = 0
    written: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        return self.read + self.constants + self.written


def of_layers(layers: Iterable[Mapping[str, Any]]) -> tuple[Kernel, ...]:
    """A layer report's records (see `backends/layer_report.py`)."""
    return tuple(
        Kernel(
            name=layer["name"],
            type=layer["type"],
            inputs=_tensors(layer["inputs"]),
            constants=_tensors(layer["constants"]),
            outputs=_tensors(layer["outputs"]),
            nodes=tuple(layer["onnx_nodes"]),
        )
        for layer in layers
    )


class _TensorRecord(BaseModel):
    name: str
    dtype: str
    shape: Annotated[manifest.Many[_Extent | str], Field(max_length=_MOST_AXES)]


class _LayerRecord(BaseModel):
    name: str
    type: str
    inputs: manifest.Many[_TensorRecord]
    constants: manifest.Many[_TensorRecord]
    outputs: manifest.Many[_TensorRecord]
    onnx_nodes: manifest.Many[str]


class _Report(BaseModel):
    layers: manifest.Many[_LayerRecord]


def read(path: Path) -> tuple[Kernel, ...]:
    """Of the report that lies beside an engine; raises BundleError."""
    try:
        report = _Report.model_validate_json(files.read(path, most=_LARGEST))
    except OSError as error:
        raise BundleError(f"can't read the layer report {path}: {error.strerror or error}.") from error
    except ValidationError as error:
        raise BundleError(f"{path} is not a layer report of this package: {first_fault(error)}.") from error
    return of_layers(report.model_dump()["layers"])


def by_profile(kernels: Iterable[Kernel]) -> tuple[tuple[Kernel, ...], ...]:
    """The kernels of each profile, by its index: an inference runs those of one."""
    groups: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.profile, []).append(kernel)
    return tuple(tuple(groups[profile]) for profile in sorted(groups))


def traffic(kernels: Iterable[Kernel]) -> Traffic:
    read = constants = written = unknown = 0
    for kernel in kernels:
        read += _known(kernel.inputs)
        constants += _known(kernel.constants)
        written += _known(kernel.outputs)
        unknown += sum(each.bytes is None for each in kernel.tensors)
    return Traffic(read=read, constants=constants, written=written, unknown=unknown)


def _known(tensors: Iterable[Tensor]) -> int:
    return sum(each.bytes or 0 for each in tensors)


def _tensors(found: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    out = []
    for each in found:
        name, width = _FORMATS.get(each["dtype"], (each["dtype"].lower(), 0))
        out.append(Tensor(name=each["name"], format=name, width=width, shape=tuple(each["shape"])))
    return tuple(out)
