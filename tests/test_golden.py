"""L3: the command line and the runtime against the authors' own logits. All cases with `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.runtime import load
from ropevit_export.values import Resolution
from tests.conftest import GOLDEN
from tests.golden import fill

LOGITS = np.load(GOLDEN / "logits.npz")
# A size above all of theirs: none of them is named at export.
LIMIT = "400x416"
# Other cases are slow.
QUICK: dict[str, Any] = {
    "rope_mixed_deit_small_patch16_LS@224x224": (),
    "swin_rope_mixed_tiny_patch4_window7_224@224x224": pytest.mark.again,
}


def export(name: str, folder: Path, *options: str) -> None:
    """Export the official checkpoint that the logits are of to `folder / "out"`."""
    tensors = {key: torch.from_numpy(value) for key, value in fill.state_dict(name).items()}
    torch.save({"model": tensors}, folder / "pytorch_model.bin")
    arguments = ["--model", name, "--weights", str(folder / "pytorch_model.bin"), "--engine", "none", *options]
    assert cli.run([*arguments, "-q", "--out", str(folder / "out")]) == 0


@pytest.mark.parametrize("case", [pytest.param(case, marks=QUICK.get(case, pytest.mark.slow)) for case in LOGITS.files])
def test_an_exported_official_checkpoint_is_the_authors_model(case: str, tmp_path: Path) -> None:
    name, size = case.split("@")
    resolution = Resolution.parse(size)
    export(name, tmp_path, "--res", size)
    images = fill.image(resolution.height, resolution.width)
    for artifact in manifest.read(tmp_path / "out").artifacts:
        path = tmp_path / "out" / artifact.path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        ours = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
        np.testing.assert_allclose(ours, LOGITS[case], atol=1e-5)


DEITS = sorted({case.split("@")[0] for case in LOGITS.files if "swin" not in case})


@pytest.mark.slow
@pytest.mark.parametrize("name", DEITS)
@pytest.mark.parametrize("mode", ["dynamic", "inputs"])
def test_one_graph_is_the_authors_model_at_sizes_never_named(name: str, mode: str, tmp_path: Path) -> None:
    export(name, tmp_path, "--res", LIMIT, "--rope", mode, "--batch", "1:2:8")
    model = load(tmp_path / "out")
    for case in (case for case in LOGITS.files if case.startswith(f"{name}@")):
        size = Resolution.parse(case.split("@")[1])
        images, theirs = fill.image(size.height, size.width), LOGITS[case]
        for batch in (1, 3, 8):
            chosen = np.arange(batch) % len(images)
            np.testing.assert_allclose(model.run(images[chosen]), theirs[chosen], atol=1e-5, err_msg=case)
