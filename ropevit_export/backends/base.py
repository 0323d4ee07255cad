"""What the pipeline asks of a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ropevit_export.values import EngineSpec, Plan

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays


class Runner(Protocol):
    """A loaded artifact. `describe` names runtime, version, provider and the precision that it computes in."""

    @property
    def describe(self) -> str: ...

    def run(self, feeds: Arrays, output: str) -> Array:
        """The named output; raises BackendError."""
        ...


class Builder(Protocol):
    """Builds engines from ONNX files. The constructor raises BackendError where the library is missing."""

    runtime: str
    suffix: str
    all_targets: tuple[str, ...]

    def check(self, spec: EngineSpec) -> None:
        """Raise UsageError before any work is done where a target can't hold the request."""
        ...

    def build(self, onnx: Path, spec: EngineSpec) -> Plan: ...
