"""`deepstream`: files for nvdspreprocess and nvinfer, which cut a frame where Pillow's transform does."""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.images.preprocess import crop
from ropevit_export.models.spec import Preprocess
from ropevit_export.values import Resolution
from ropevit_export.verbs import deepstream

TRANSFORM = Preprocess(
    mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop=0.875, layout="NHWC", dtype="uint8"
)


@pytest.mark.parametrize("size", ["224", "256x384"])
@pytest.mark.parametrize("change", [{}, {"crop": 1.0}, {"crop_mode": "squash", "crop": 1.0}])
@pytest.mark.parametrize("frame", [(1080, 1920), (640, 480)])
def test_a_frame_is_cut_where_the_transform_cuts(size: str, change: dict[str, object], frame: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0 : frame[0], 0 : frame[1]]
    ramps = np.stack([255 * rows / frame[0], 255 * columns / frame[1], 0 * rows], axis=-1).astype(np.uint8)
    picture, preprocess = Image.fromarray(ramps), dataclasses.replace(TRANSFORM, **change)  # type: ignore[arg-type]
    wanted = Resolution.parse(size)
    left, top, width, height = deepstream.region(preprocess, wanted, Resolution(height=frame[0], width=frame[1]))
    theirs = crop(picture, preprocess, wanted).astype(int)

    def cut(left: int, top: int) -> float:
        box = (left, top, left + width, top + height)
        ours = picture.crop(box).resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
        return float(np.abs(np.asarray(ours).astype(int) - theirs).mean())

    assert cut(left, top) < 0.5
    assert cut(left + 20, top) > 0.5  # a region that is off shows


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deepstream") / "pixels"
    small = ["--model", "shallow_rope_mixed_deit_digits", "--res", "32", "--weights", "random", "--engine", "none"]
    assert cli.run([*small, "--pixels", "--batch", "1:2:4", "-q", "--out", str(path)]) == 0
    return path


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",))
    parser.read_string(path.read_text())
    return parser


def test_both_plugins_are_told_what_the_graph_takes(pixels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["deepstream", str(pixels), "--out", str(out), "--frame", "720x1280", "--sources", "2"]
    assert cli.run(command) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "model-32.onnx", "nvdspreprocess.txt", "nvinfer.txt", "weights.data",
    ]  # fmt: skip
    prepare, infer = read(out / "nvdspreprocess.txt"), read(out / "nvinfer.txt")
    given = prepare["property"]
    assert (given["network-input-order"], given["tensor-data-type"], given["tensor-name"]) == ("1", "1", "image")
    assert given["network-input-shape"] == "2;32;32;3"
    assert prepare["group-0"]["src-ids"] == "0;1"
    assert prepare["group-0"]["roi-params-src-1"] == "280;0;720;720"
    assert given["target-unique-ids"] == infer["property"]["gie-unique-id"]
    assert (infer["property"]["onnx-file"], infer["property"]["batch-size"]) == ("model-32.onnx", "2")
    assert infer["property"]["output-blob-names"] == "logits"


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--sources", "5"], 2, "--sources 5 make a batch of as many, model-32.onnx takes 1 to 4"),
        (["--res", "48"], 1, "no graph for 48 in"),
    ],
)
def test_what_does_not_fit_is_refused(
    pixels: Path, tmp_path: Path, options: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(["deepstream", str(pixels), "--out", str(out), "--frame", "720x1280", *options]) == code
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_graph_that_does_not_normalise_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["deepstream", str(bundle), "--out", str(tmp_path / "out"), "--frame", "720x1280"]) == 2
    assert "takes more than raw pixels: export with --pixels" in capsys.readouterr().err
