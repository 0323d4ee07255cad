#!/usr/bin/env python3
"""Time the whole export process against plain `torch.onnx.export`, followed by onnxsim unless `--bare`, in turn.

    python scripts/bench_export.py --model rope_mixed_deit_base --res 384 --runs 3
    python scripts/bench_export.py --model dinov3_small --res 512 --bare --engine none

Ours: `ropevit-export` with random weights, which includes reference outputs, parity and the TensorRT-RTX engine.
Theirs: timm's model of the same name and size, exported with default options and simplified.
Prints one JSON row a process, then the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from ropevit_export.models.zoo import find_model

THEIRS = """
import sys, warnings
warnings.simplefilter("ignore")
import timm, torch
name, size = sys.argv[1], int(sys.argv[2])
model = timm.create_model(name, img_size=size).eval()
torch.onnx.export(model, (torch.randn(1, 3, size, size),), "plain.onnx", dynamo=True, verbose=False)
if sys.argv[3] == "simplified":
    import onnx, onnxsim
    simple, _ = onnxsim.simplify(onnx.load("plain.onnx"))
    onnx.save(simple, "simple.onnx")
"""


def measure(name: str, command: list[str]) -> dict[str, object]:
    """Seconds and peak resident memory of one run in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name} failed with status {status}: {' '.join(command)}")
    return {"process": name, "seconds": round(seconds, 2), "peak_mb": usage.ru_maxrss // 1024}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--model", default="rope_mixed_deit_base")
    arguments.add_argument("--res", type=int, default=384)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--bare", action="store_true", help="theirs is torch.onnx.export alone")
    arguments.add_argument("--engine", default="auto", help="ours builds this engine")
    given = arguments.parse_args()
    spec = find_model(given.model)
    if spec.timm is None:
        raise SystemExit(f"timm has no {spec.short} to compare with.")
    size = str(given.res)
    commands = {
        "ours": [sys.executable, "-c", "from ropevit_export.start import main; main()", "--model", spec.short,
                 "--res", size, "--weights", "random", "--engine", given.engine],
        "theirs": [sys.executable, "-c", THEIRS, spec.timm, size, "bare" if given.bare else "simplified"],
    }  # fmt: skip
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                      "versions": {name: version(name) for name in ("torch", "timm", "onnx", "onnxsim")}}))  # fmt: skip
    rows = []
    for _ in range(given.runs):
        for name, command in commands.items():
            rows.append(measure(name, command))
            print(json.dumps(rows[-1]), flush=True)
    medians = {
        key: {name: statistics.median(row[key] for row in rows if row["process"] == name) for name in commands}  # type: ignore[type-var]
        for key in ("seconds", "peak_mb")
    }
    ratios = {key: round(each["ours"] / each["theirs"], 2) for key, each in medians.items()}  # type: ignore[operator]
    print(json.dumps({"model": spec.short, "size": given.res, "medians": medians, "ours_over_theirs": ratios}))


if __name__ == "__main__":
    main()
