"""The packaged trained model: its weights and its held-out images are what they say, and its graphs classify them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ropevit_export import cli
from ropevit_export.checkpoint import source
from ropevit_export.errors import CheckpointError, UsageError
from ropevit_export.models.zoo import DIGITS, MODELS, find_model
from ropevit_export.request import Request
from ropevit_export.values import Resolution

FOLDER = source.PACKAGED.parent
MODEL = ("--model", "rope_mixed_deit_digits", "--res", "32,48", "--engine", "none", "-q", "--batch", "1:16:64")


def test_the_weights_are_those_of_the_row() -> None:
    assert hashlib.sha256(source.PACKAGED.read_bytes()).hexdigest() == DIGITS.packaged
    assert DIGITS.packaged in (FOLDER / "README.md").read_text()


def test_the_example_is_found_but_is_not_one_of_the_papers() -> None:
    assert find_model("rope_mixed_deit_digits") is DIGITS
    assert DIGITS not in MODELS


def test_held_out_images_are_scikit_learns_and_in_no_other_part() -> None:
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    rest, test, _, labels = train_test_split(pixels, data.target, test_size=0.2, stratify=data.target, random_state=0)
    with np.load(FOLDER / "test.npz") as held_out:
        assert np.array_equal(held_out["images"], test)
        assert np.array_equal(held_out["labels"], labels)
    assert not {image.tobytes() for image in test} & {image.tobytes() for image in rest}


def test_damaged_packaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray(source.PACKAGED.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(damaged)
    monkeypatch.setattr(source, "PACKAGED", tmp_path / "weights.safetensors")
    request = Request(model=DIGITS, resolutions=(Resolution.parse("32"),))
    with pytest.raises(CheckpointError, match="the packaged weights of rope_mixed_deit_digits have SHA-256"):
        source.load(request, pytest.fail)


def test_a_packaged_model_has_no_revision() -> None:
    with pytest.raises(UsageError, match="--revision is of the hub, but rope_mixed_deit_digits is in this package"):
        Request(model=DIGITS, resolutions=(Resolution.parse("32"),), revision="main")


@pytest.mark.parametrize(
    ("precision", "within"), [("fp32", 1e-9), ("fp16", 0.3), pytest.param("bf16", 0.3, marks=pytest.mark.again)]
)
def test_accuracy_holds_at_the_training_size_and_beyond(
    precision: str, within: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*MODEL, "--precision", precision, "--out", str(tmp_path / "out")]) == 0
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert listed["weights"]["trained"] is True
    assert listed["classes"] == 10
    capsys.readouterr()
    assert cli.run(["eval", str(tmp_path / "out"), "--data", "digits", "--json", "-q"]) == 0
    rows = json.loads(capsys.readouterr().out)["accuracy"]
    for size, least in ((32, 97.0), (48, 90.0)):
        mine = [row for row in rows if row["resolution"] == [size, size]]
        assert [row["contender"] for row in mine][:2] == ["PyTorch", f"model-{size}.onnx"]
        assert all(row["top1"] >= least and row["images"] == 360 for row in mine)
        assert all(abs(row["difference"]) <= within for row in mine)
