"""A bundle from the user's own file, whose blocks have equal parameters, as timm leaves a new model: one export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image

from ropevit_export import cli
from ropevit_export.bundle import manifest, onnx_file
from ropevit_export.errors import BundleError, InputError
from ropevit_export.images import calibration
from ropevit_export.runtime import load

ROW = ("--model", "rope_mixed_deit_digits", "--res", "32", "--engine", "none")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The bundle, its file and timm's model."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_rope_mixed_224", img_size=32, patch_size=4, embed_dim=48, depth=4,
                              num_heads=3, num_classes=6).eval()  # fmt: skip
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.cls_token)
    torch.save({"net": model.state_dict(), "epoch": 3}, folder / "own.pth")
    options = ["--weights", str(folder / "own.pth"), "--single-file", "--out", str(folder / "bundle")]
    assert cli.run([*ROW, *options, "-q"]) == 0
    return folder / "bundle", folder / "own.pth", model


def test_it_answers_as_timm_does(made: tuple[Path, Path, Any]) -> None:
    bundle, _, model = made
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        theirs = model(torch.from_numpy(images)).numpy()
    assert np.abs(load(bundle).run(images) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_what_was_chosen_is_in_manifest_and_report_and_on_stderr(
    made: tuple[Path, Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, path, _ = made
    said = "weights are the file's net"
    assert manifest.read(bundle).choices == (said,)
    assert f"- {said}." in (bundle / "report.md").read_text()
    capsys.readouterr()
    assert cli.run([*ROW, "--weights", str(path), "--out", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()
    assert said not in printed.out


def test_a_single_file_holds_its_weights_and_works_alone(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    import onnxruntime

    bundle, _, _ = made
    assert not (bundle / "weights.data").exists()
    (artifact,) = manifest.read(bundle).artifacts
    assert artifact.files == ()
    shutil.copy(bundle / artifact.path, tmp_path / "alone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "alone.onnx", providers=["CPUExecutionProvider"])
    images = np.ones((1, 3, 32, 32), np.float32)
    assert np.array_equal(session.run(None, {"image": images})[0], load(bundle).run(images))
    assert cli.run(["check", str(bundle)]) == 0


def test_weights_that_a_protobuf_cannot_hold_are_refused() -> None:
    onnx_file.check_single(2**31 - 2)
    with pytest.raises(BundleError, match=r"weights of 2\.15 GB don't go into an ONNX file, which ends at 2 GB"):
        onnx_file.check_single(2**31)


def test_the_ir_version_is_the_oldest_that_has_the_opset(made: tuple[Path, Path, Any]) -> None:
    model = onnx.load(made[0] / "model-32.onnx")
    (opset,) = (each.version for each in model.opset_import if not each.domain)
    assert (opset, model.ir_version) == (20, 9)
    assert not any(node.metadata_props for node in model.graph.node)  # which came with IR 10
    onnx.checker.check_model(model)


def test_by_layer_asks_for_the_users_own_file(
    made: tuple[Path, Path, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path, _ = made
    monkeypatch.setattr("ropevit_export.checkpoint.hub.fetch", lambda *_: pytest.fail("asked the hub"))
    capsys.readouterr()
    assert cli.run(["check", str(bundle), "--by-layer"]) == 1
    error = capsys.readouterr().err
    assert "the bundle was made from the file own.pth, SHA-256 " in error
    assert "give it with --weights PATH/own.pth." in error
    assert "pretrained" not in error
    other = path.with_name("other.pth")
    torch.save(torch.load(path)["net"], other)
    assert cli.run(["check", str(bundle), "--by-layer", "--weights", str(other)]) == 1
    assert "give the file with --weights PATH" in capsys.readouterr().err


def test_by_layer_tells_blocks_of_equal_parameters_apart(
    made: tuple[Path, Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, path, model = made
    assert torch.equal(model.blocks[0].norm1.weight, model.blocks[3].norm2.weight)
    capsys.readouterr()
    assert cli.run(["check", str(bundle), "--by-layer", "--weights", str(path), "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert [each["place"] for each in graph["errors"]] == [
        f"blocks.{block}.{part}" for block in range(4) for part in ("norm1", "attention", "norm2", "mlp")
    ]
    assert graph["jump"] is None


def test_prepare_takes_pictures_pixels_and_paths(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    model = load(made[0])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = model.prepare(Image.fromarray(pixels))
    assert found.shape == (1, 3, 32, 32)
    for given in (pixels, tmp_path / "x.png", str(tmp_path / "x.png")):
        assert np.array_equal(model.prepare(given), found)
    gray = Image.fromarray(pixels[:, :, 0])
    assert np.array_equal(model.prepare(gray), model.prepare(np.repeat(pixels[:, :, :1], 3, 2)))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 array \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 array \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 array \(4, 4, 4\)"),
        (torch.zeros(3, 4, 4), "Tensor"),
        (None, "NoneType"),
    ],
)
def test_prepare_says_what_it_takes(made: tuple[Path, Path, Any], given: Any, what: str) -> None:
    with pytest.raises(InputError, match=rf"prepare was given a {what}: needs a PIL image, uint8 pixels \(H, W, 3\)"):
        load(made[0]).prepare(given)


def test_pixels_of_more_than_8_bits_are_refused(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    deep.save(tmp_path / "deep.png")
    for given in (deep, tmp_path / "deep.png"):
        with pytest.raises(InputError, match="its pixels are of mode I.*, needs 8 bits a channel"):
            load(made[0]).prepare(given)
    with pytest.raises(InputError, match="absent.png can't be read as an image"):
        load(made[0]).prepare(tmp_path / "absent.png")


# Pictures that can't be read


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six classes of two pictures; of three of them the file is cut short, empty, or text."""
    rng = np.random.default_rng(0)
    for label in range(6):
        folder = tmp_path / "data" / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    root = tmp_path / "data"
    whole = (root / "class-1" / "0.jpg").read_bytes()
    (root / "class-1" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "class-2" / "1.jpg").write_bytes(b"")
    (root / "class-3" / "0.jpg").write_bytes(b"<html>")
    return root


def test_eval_names_an_unreadable_picture_first_or_counts_those_left_out(
    made: tuple[Path, Path, Any], pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path, _ = made
    options = ["eval", str(bundle), "--data", str(pictures), "--weights", str(path), "--json", "-q"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("ropevit_export.verbs.evaluate.reference_of", lambda *_: pytest.fail("built a model first"))
        assert cli.run(options) == 1
    error = capsys.readouterr().err
    assert f"3 of 12 pictures of --data {pictures} can't be read, such as {pictures}/class-1/0.jpg: " in error
    assert "--skip-unreadable" in error
    assert cli.run([*options, "--skip-unreadable"]) == 0
    printed = capsys.readouterr()
    assert "3 pictures of --data can't be read and are left out" in printed.err
    rows = json.loads(printed.out)["accuracy"]
    assert {(row["images"], row["unreadable"]) for row in rows} == {(9, 3)}


def test_calibration_names_an_unreadable_picture_before_anything_is_loaded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*ROW, "--precision", "int8", "--calib", str(pictures), "--out", str(tmp_path / "out"), "-q"]
    monkeypatch.setattr("ropevit_export.stages.load", lambda *_: pytest.fail("loaded weights first"))
    capsys.readouterr()
    assert cli.run(options) == 1
    assert f"3 of 12 pictures of --calib {pictures} can't be read" in capsys.readouterr().err
    assert len(calibration.pictures(str(pictures), skip_unreadable=True)) == 9
    assert calibration.left_out(str(pictures)) == ["0.jpg", "1.jpg", "0.jpg"]


def test_a_folder_of_nothing_but_unreadable_pictures_is_refused(pictures: Path) -> None:
    (pictures / "class-3" / "1.jpg").unlink()
    with pytest.raises(InputError, match="none of the 1 pictures of --calib .* can be read"):
        calibration.pictures(str(pictures / "class-3"), skip_unreadable=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--skip-unreadable"], "--skip-unreadable is for the pictures of --calib"),
        (["--weights-key", "ema"], "--weights-key is for a file with several dictionaries, but the weights are auto"),
        (["--window", "0"], "--window '0' is neither N nor RxC"),
    ],
)
def test_options_that_nothing_has_a_use_for(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*ROW, *options]) == 2
    assert sentence in capsys.readouterr().err
