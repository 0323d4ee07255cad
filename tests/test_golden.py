"""L3: the command line against the authors' own logits. All cases with `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.values import Resolution
from tests.conftest import GOLDEN
from tests.golden import fill

LOGITS = np.load(GOLDEN / "logits.npz")
QUICK = (
    "rope_axial_ape_deit_small_patch16_LS@256x352",
    "rope_mixed_deit_small_patch16_LS@224x224",
    "deit_small_patch16_LS@384x384",
    "swin_rope_mixed_tiny_patch4_window7_224@224x224",
)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in LOGITS.files]
)
def test_an_exported_official_checkpoint_is_the_authors_model(case: str, tmp_path: Path) -> None:
    name, size = case.split("@")
    resolution = Resolution.parse(size)
    tensors = {key: torch.from_numpy(value) for key, value in fill.state_dict(name).items()}
    torch.save({"model": tensors}, tmp_path / "pytorch_model.bin")
    arguments = ["--model", name, "--res", size, "--weights", str(tmp_path / "pytorch_model.bin"), "--engine", "none"]
    assert cli.run([*arguments, "-q", "--out", str(tmp_path / "out")]) == 0

    (artifact,) = manifest.read(tmp_path / "out").artifacts
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / artifact.path), providers=["CPUExecutionProvider"])
    images = fill.image(resolution.height, resolution.width)
    ours = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(ours, LOGITS[case], atol=1e-5)
