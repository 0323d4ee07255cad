"""The GPU of this machine, as its driver's own tool names it."""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass

_FIELDS = "name,driver_version,compute_cap"


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
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        answer = subprocess.run(
            [tool, f"--query-gpu={_FIELDS}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    parts = [part.strip() for part in (answer.stdout.splitlines() or [""])[0].split(",")]
    if len(parts) != 3:
        return None
    return Gpu(name=parts[0], driver=parts[1], compute_capability=parts[2].replace(".", ""))
