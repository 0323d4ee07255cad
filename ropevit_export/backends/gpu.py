"""The GPU of this machine, as its driver's own tool names it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ropevit_export import machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """`compute_capability` as targets are written: "89" for 8.9."""

    name: str
    driver: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (SM {self.compute_capability}, driver {self.driver})"


@functools.lru_cache(maxsize=1)
def present() -> Gpu | None:
    """The first GPU; None where there is none, or no driver for it."""
    gpus, _ = machine.gpus()
    if not gpus:
        return None
    name, driver, capability = (str(gpus[0].get(field, "")) for field in ("name", "driver_version", "compute_cap"))
    return Gpu(name=name, driver=driver, compute_capability=capability.replace(".", "")) if capability else None
