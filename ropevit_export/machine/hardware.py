"""What a machine is: what figures depend on, and what could run on it. Asks Linux and nvidia-smi."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

from ropevit_export.errors import first_line

# What nvidia-smi is asked for, and the unit that it answers in.
_GPU_FIELDS = {
    "name": "",
    "driver_version": "",
    "compute_cap": "",
    "memory.total": "_mb",
    "clocks.sm": "_mhz",
    "clocks.mem": "_mhz",
    "clocks.max.sm": "_mhz",
    "power.limit": "_w",
}
# Instructions that decide how fast which number format is on a CPU, as Linux names them.
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
                 "amx_bf16", "amx_fp16", "asimddp", "i8mm", "bf16", "sve", "sve2")  # fmt: skip


def facts() -> dict[str, object]:
    """What figures depend on besides what is timed: system, processor, load, GPUs."""
    fields = cpu_fields()
    found: dict[str, object] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": platform.processor(),
        "cores": cores(),
    }
    found |= {name.replace(" ", "_"): fields[name]
              for name in ("model name", "cpu MHz", "cpu family", "model") if name in fields}  # fmt: skip
    found |= {"cpu_features": cpu_features(), "memory_mb": memory_mb()}
    with suppress(OSError, AttributeError):
        found["load_average"] = os.getloadavg()[0]
    found["gpus"], _ = gpus()
    return found


def cores() -> int | None:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_fields() -> dict[str, str]:
    """Of the first core, as Linux has them; nothing elsewhere."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
        return {name.strip(): value.strip() for name, value in pairs}
    return {}


def cpu_features() -> list[str]:
    fields = cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return [name for name in _CPU_FEATURES if name in flags]


def cuts_8_bit_sums() -> bool:
    """Whether kernels of 8 bits cut sums of two products at 16 bits here: x86 without VNNI, where Linux tells."""
    features = set(cpu_features())
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni"}


def ends_at_avx2() -> bool:
    """Whether AVX2's are the widest registers here, where Linux tells."""
    features = cpu_features()
    return "avx2" in features and "avx512f" not in features


def memory_mb() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return None


def gpus() -> tuple[list[dict[str, str | float]], str]:
    """NVIDIA GPUs with their driver and present clocks; and, where there are none, why."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return [], "no nvidia-smi: there is no NVIDIA driver"
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi fails: {error}"
    if done.returncode:
        return [], f"nvidia-smi fails: {first_line(done.stdout + done.stderr)}"
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()], ""


def _gpu(line: str) -> dict[str, str | float]:
    values = [value.strip() for value in line.split(",")]
    row: dict[str, str | float] = {}
    for (field, unit), value in zip(_GPU_FIELDS.items(), values, strict=False):
        name = field.replace(".", "_") + unit
        row[name] = value
        if unit:
            with suppress(ValueError):  # "[N/A]" stays what it is
                row[name] = float(value)
    return row
