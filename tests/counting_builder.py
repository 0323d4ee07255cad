"""A builder without a library, for the cache; other processes import it without torch."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

from ropevit_export.backends import cache
from ropevit_export.request import EngineSpec
from ropevit_export.values import Form, Plan, Precision


class CountingBuilder:
    """A builder that counts its work."""

    runtime, suffix = "slow", ".slow"
    form: Form = "portable"
    all_targets: tuple[str, ...] = ("89",)
    options = frozenset({"targets"})
    version = "slow 1"

    def __init__(self) -> None:
        self.built = 0

    def check(self, spec: EngineSpec) -> None: ...

    def targets(self, spec: EngineSpec) -> tuple[str, ...]:
        return spec.targets or self.all_targets

    def runner(self, path: Path, precision: Precision) -> None: ...

    def build(self, onnx: Path, spec: EngineSpec, path: Path) -> Plan:
        self.built += 1
        path.write_bytes(onnx.read_bytes() + str(self.targets(spec)).encode())
        part = path.with_suffix(".part")
        part.write_bytes(b"part")
        return Plan(files=(path, part), layers=({"name": "k"},), built_with=self.version, targets=self.targets(spec))


def build_many(folder: Path, number: int, start: Event) -> None:
    """Twenty engines, into the folder's cache, once `start` is set."""
    spec = EngineSpec(runtime="any", precision="fp32", targets=(), profiles=())
    start.wait()
    for index in range(20):
        onnx = folder / f"model-{index}.onnx"
        plan = cache.build(CountingBuilder(), [onnx], spec, folder / f"out-{number}-{index}.slow", folder / "cache")
        assert plan.files[0].read_bytes().startswith(onnx.read_bytes())
