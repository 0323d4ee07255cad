"""What the pipeline asks of a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ropevit_export.request import EngineSpec
from ropevit_export.values import Form, Plan, Precision

if TYPE_CHECKING:
    from ropevit_export.values import Array, Arrays


class Runner(Protocol):
    """A loaded artifact. `describe` names runtime, version, provider and the precision that it computes in."""

    @property
    def describe(self) -> str: ...

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Every output by its name; raises BackendError."""
        ...


class Builder(Protocol):
    """Builds engines from ONNX files. The constructor raises BackendError where the library or its device is missing.

    version      of the library, and of the device where the result depends on it
    form         of the graphs that it builds from, where a bundle has them
    all_targets  compute capabilities that it can build for
    options      fields of EngineOptions and of EngineSpec that it makes use of
    """

    runtime: str
    suffix: str
    form: Form
    all_targets: tuple[str, ...]
    options: frozenset[str]

    @property
    def version(self) -> str: ...

    def check(self, spec: EngineSpec) -> None:
        """Raise before any work is done where the request can't be held: UsageError, or BackendError where only this
        machine can't.
        """
        ...

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        """What an engine will be for."""
        ...

    def build(self, onnx: Path, spec: EngineSpec, path: Path) -> Plan:
        """Write the engine to `path`, and what belongs to it beside it."""
        ...

    def runner(self, path: Path, precision: Precision) -> Runner | None:
        """An engine, loaded; None where engines of this kind don't run on the machine that builds them."""
        ...
