"""The first bytes of an engine file: who made it, for which GPUs, how long it must be. Needs neither GPU nor library.

    byte  0  tag: "vtrt" TensorRT-RTX, "ftrt" TensorRT
          4  layout of what follows, 0
         16  TensorRT-RTX: bytes of the whole file
         24  version: major, minor, patch, build
         32  TensorRT-RTX: one bit a compute capability

Sources: trtexec's printPlanVersion (NVIDIA/TensorRT, samples/common/sampleEngines.cpp) for tag, layout and version;
the rest from engines of TensorRT-RTX 1.7 built for known targets, which `tests/test_inspect.py` builds again.
`Runtime.get_engine_validity` of TensorRT-RTX asks for a GPU before it looks further than the tag.
"""

from __future__ import annotations

import importlib.metadata
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ropevit_export.errors import BundleError
from ropevit_export.machine import files, gpu

Runtime = Literal["tensorrt-rtx", "tensorrt"]
Version = tuple[int, ...]
TITLES: dict[Runtime, str] = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_TAGS: dict[bytes, Runtime] = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
_BYTES: dict[Runtime, int] = {"tensorrt-rtx": 64, "tensorrt": 28}
_TARGETS = ("75", "80", "86", "89", "120", "121")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanHeader:
    """`targets`: compute capabilities, such as "89"; none where the header does not say (TensorRT)."""

    runtime: Runtime
    version: Version
    targets: tuple[str, ...]

    @property
    def built_with(self) -> str:
        return f"{TITLES[self.runtime]} {_text(self.version)}"


def read(path: Path) -> PlanHeader:
    """Raises BundleError for a file that is no engine, not whole, or laid out as no engine known here."""
    try:
        with files.regular(path) as stream:
            size = path.stat().st_size
            start = stream.read(max(_BYTES.values()))
    except OSError as error:
        raise BundleError(f"can't read the engine {path}: {error.strerror or error}.") from error
    runtime = _TAGS.get(start[:4])
    if runtime is None:
        raise BundleError(f"{path} is no TensorRT engine: it {_looks_like(start)}.")
    if len(start) < _BYTES[runtime]:
        raise BundleError(f"{path} is cut off: it ends after {size} bytes, within the header of its engine.")
    (layout,) = struct.unpack_from("<I", start, 4)
    if layout != 0:
        raise BundleError(
            f"{path} is a {TITLES[runtime]} engine in layout {layout}, this reads layout 0: a newer release made it."
        )
    targets: tuple[str, ...] = ()
    if runtime == "tensorrt-rtx":
        (whole,) = struct.unpack_from("<Q", start, 16)
        if size != whole:
            what = "cut off" if size < whole else "too long"
            raise BundleError(
                f"{path} is {what}: it has {size} bytes, its header says {whole}; copy or build it again."
            )
        targets = _targets(struct.unpack_from("<Q", start, 32)[0])
    return PlanHeader(runtime=runtime, version=tuple(start[24:28]), targets=targets)


def obstacles(header: PlanHeader, targets: Sequence[str], installed: str | None, capability: str | None) -> list[str]:
    """Why an engine can't run here, a sentence each. `targets`: what it was built for, by its header or its manifest.
    `installed`: the library's version here. `capability`: of the GPU here, such as "89".
    """
    title, found = TITLES[header.runtime], []
    if installed is None:
        found.append(f"{title} is not installed here; the engine needs {_text(header.version)}.")
    elif header.version[: len(here := _version(installed))] != here:
        age = "newer" if header.version > here else "older"
        unless = "" if header.runtime == "tensorrt-rtx" else ", unless it was built version compatible"
        found.append(
            f"built by {header.built_with}, which is {age} than the {installed} here: an engine runs in the release "
            f"that built it{unless}."
        )
    if capability is None:
        found.append("there is no NVIDIA GPU here.")
    elif targets and capability not in targets:
        found.append(f"built for SM {', '.join(targets)}, this is SM {capability}.")
    return found


def installed_version(runtime: Runtime) -> str | None:
    """Of the library that runs such an engine here."""
    for package in (f"{runtime}-cu13", f"{runtime}-cu12", runtime):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def gpu_capability() -> str | None:
    """Compute capability of this machine's first GPU, such as "89"; None where there is none."""
    found = gpu.present()
    return None if found is None else found.compute_capability


def _targets(bits: int) -> tuple[str, ...]:
    return tuple(target for index, target in enumerate(_TARGETS) if bits >> index & 1)


def _looks_like(start: bytes) -> str:
    if not start:
        return "is empty"
    if start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x3a", b"\x42"):  # fields of an ONNX model
        return "looks like an ONNX graph"
    return f"begins with {start[:4]!r}"


def _version(text: str) -> Version:
    return tuple(map(int, re.findall(r"\d+", text)))[:4]


def _text(version: Version) -> str:
    return ".".join(map(str, version))
