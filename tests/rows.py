"""Rows of few blocks of every model, for who traces or builds: that takes its time by the block.

They are found by name, `shallow_deit_small` for `deit_small`, and so they are by `command_line`.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ropevit_export.models import zoo
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, MODELS

PREFIX = "shallow_"
# Two blocks: the last one computes the class token only. Swin: one block's windows are shifted.
VIT, SWIN = (2,), (1, 2, 1, 1)


def shallow(spec: ModelSpec) -> ModelSpec:
    depths = VIT if len(spec.depths) == 1 else SWIN
    name, short = f"{PREFIX}{spec.name}", f"{PREFIX}{spec.short}"
    return dataclasses.replace(spec, name=name, short=short, depths=depths, packaged=None)


for _spec in map(shallow, (*MODELS, *EXAMPLES)):
    zoo._BY_NAME |= {_spec.name: _spec, _spec.short: _spec}


def command_line(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own, where no hub can be reached."""
    code = "import tests.rows; from ropevit_export.start import main; main()"
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}, **options,
    )  # fmt: skip
