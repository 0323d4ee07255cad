"""The GPU that engines are built for and run on: this machine's first."""

from __future__ import annotations

from dataclasses import dataclass

from ropevit_export.machine import hardware


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """`compute_capability` as targets are written: "89" for 8.9."""

    name: str
    driver: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (SM {self.compute_capability}, driver {self.driver})"


def present() -> Gpu | None:
    """None where there is none, no driver for it, or one that does not say what it can."""
    found, _ = hardware.gpus()
    capability = str(found[0].get("compute_cap", "")).replace(".", "") if found else ""
    if not capability.isdigit():
        return None
    return Gpu(name=str(found[0]["name"]), driver=str(found[0]["driver_version"]), compute_capability=capability)
