"""`eval`: what it counts, on images whose classes are known by construction, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from ropevit_export import cli
from ropevit_export.checkpoint.source import PACKAGED
from ropevit_export.errors import InputError
from ropevit_export.values import Resolution
from ropevit_export.verbs import evaluate
from ropevit_export.verbs.evaluate import labelled, published

Run = Callable[..., tuple[int, str, str]]
DIGITS = ("--model", "rope_mixed_deit_digits", "--engine", "none", "-q")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "digits"
    assert cli.run([*DIGITS, "--res", "32x48,32", "--rope", "dynamic", "--batch", "1:2:4", "--out", str(path)]) == 0
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten folders, the held-out digits in them; of the fives every second one lies with the sixes."""
    with np.load(PACKAGED.with_name("test.npz")) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "data" / str(6 if label == 5 and index % 2 else label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:03}.png")
    return tmp_path / "data"


def test_images_in_the_wrong_folder_count_as_wrong(digits: Path, folder: Path, run: Run) -> None:
    clean = json.loads(run("eval", digits, "--data", "digits", "--res", "32", "--json", "-q")[1])["accuracy"]
    moved = json.loads(run("eval", digits, "--data", folder, "--res", "32", "--json", "-q")[1])["accuracy"]
    count = sum(path.parent.name == "6" for path in folder.rglob("*.png"))
    with np.load(PACKAGED.with_name("test.npz")) as held_out:
        misplaced = count - int((held_out["labels"] == 6).sum())
    assert misplaced > 10
    for before, after in zip(clean, moved, strict=True):
        lost = (before["top1"] - after["top1"]) * 360 / 100
        assert misplaced - 2 <= round(lost) <= misplaced
        assert after["published"] is None


def test_every_size_of_a_dynamic_bundle_is_evaluated(digits: Path, run: Run) -> None:
    rows = json.loads(run("eval", digits, "--data", "digits", "--limit", "40", "--json", "-q")[1])["accuracy"]
    assert [(row["contender"], row["resolution"], row["images"]) for row in rows] == [
        ("PyTorch", [32, 48], 40),
        ("model-dynamic.onnx", [32, 48], 40),
        ("PyTorch", [32, 32], 40),
        ("model-dynamic.onnx", [32, 32], 40),
    ]


def test_a_difference_has_the_error_of_the_images_that_differ(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that is wrong on exactly two more of 360 images: 2/360 less, and the error of two in 360."""
    plain = evaluate._answer

    def spoiled(*arguments: object) -> np.ndarray:
        logits = plain(*arguments)  # type: ignore[arg-type]
        if len(seen) == 0:
            logits[:2] = -logits[:2]
        seen.append(len(logits))
        return logits

    seen: list[int] = []
    monkeypatch.setattr(evaluate, "_answer", spoiled)
    _, ours = evaluate.evaluate(digits, "digits", resolution=Resolution.parse("32"))
    gap = np.zeros(360)
    gap[:2] = -1
    assert ours.difference == pytest.approx(-100 * 2 / 360)
    assert ours.standard_error == pytest.approx(100 * gap.std(ddof=1) / np.sqrt(360))


def test_pytorch_must_have_the_bundles_weights(digits: Path, run: Run, tmp_path: Path) -> None:
    tensors = load_file(PACKAGED)
    tensors["head.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    code, _, err = run("eval", digits, "--data", "digits", "-q", "--weights", tmp_path / "other.safetensors")
    assert code == 1
    assert "the bundle was made from weights 37d97727877d… (ropevit-export, digits/weights.safetensors), found" in err
    assert run("eval", digits, "--data", "digits", "-q", "--weights", PACKAGED, "--limit", "10")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "nowhere"), "nowhere has 0 folders, the bundle's model has 10 classes: needs one folder a class"),
        (("--data", "digits", "--res", "64"), "no graph for 64x64 in this bundle"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    digits: Path, run: Run, arguments: tuple[str, ...], sentence: str
) -> None:
    code, _, err = run("eval", digits, "-q", *arguments)
    assert (code, err) == (1, f"error: {sentence}.\n")


def test_a_broken_image_is_named(digits: Path, folder: Path, run: Run) -> None:
    first = min(folder.rglob("*.png"))
    first.write_bytes(b"not an image")
    code, _, err = run("eval", digits, "--data", folder, "-q", "--res", "32")
    assert code == 1
    assert "error: 1 of 360 pictures of --data" in err
    assert f"{first.name}: cannot identify image file. Replace them, or leave them out with --skip-unreadable." in err


def test_features_have_no_accuracy(run: Run, tmp_path: Path) -> None:
    assert cli.run([*DIGITS, "--res", "32", "--output", "cls", "--out", str(tmp_path / "cls")]) == 0
    code, _, err = run("eval", tmp_path / "cls", "--data", "digits", "-q")
    assert code == 1
    assert "gives cls: eval needs a bundle made with --output logits" in err


def test_imagenet_is_known_by_its_folders_and_has_published_figures(tmp_path: Path) -> None:
    for index in range(1000):
        (tmp_path / f"n{index:08}").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "n00000007" / "a.JPEG")
    found = labelled(str(tmp_path), 1000)
    assert found.imagenet
    assert found.labels.tolist() == [7]
    assert published("rope_mixed_deit_small_patch16_LS", Resolution.parse("384")) == 81.8
    assert published("rope_mixed_deit_small_patch16_LS", Resolution.parse("256")) is None
    with pytest.raises(InputError, match="--data digits has 10 classes, the bundle's model 1000"):
        labelled("digits", 1000)
