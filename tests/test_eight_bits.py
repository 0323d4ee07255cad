"""int8 and fp8 through the command line: what must be given, what is in the bundle, what it classifies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.bundle import golden
from ropevit_export.errors import BackendError, InputError, UsageError
from ropevit_export.images import calibration
from ropevit_export.inspect import census
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.request import EngineSpec
from ropevit_export.runtime import load
from ropevit_export.values import Precision, Resolution
from ropevit_export.verbs.by_layer import by_layer
from tests.conftest import golden_of

DIGITS = ("--model", "rope_mixed_deit_digits", "--res", "32,48", "--engine", "none", "-q", "--batch", "1:16:64")


@pytest.fixture(scope="module", params=["int8", "fp8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / str(request.param)
    assert cli.run([*DIGITS, "--precision", request.param, "--calib", "digits", "--out", str(path)]) == 0
    return path


def test_accuracy_holds_within_a_point(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", str(bundle), "--data", "digits", "--json", "-q"]) == 0
    rows = json.loads(capsys.readouterr().out)["accuracy"]
    assert len(rows) == 2 * (3 if bundle.name == "int8" else 2)
    assert all(abs(row["difference"]) <= 1.0 and row["top1"] >= 97 for row in rows)


def test_the_manifest_names_the_forms_and_what_they_compute_in(bundle: Path) -> None:
    listed = json.loads((bundle / "manifest.json").read_text())
    forms = ["portable", "onnxruntime"] if bundle.name == "int8" else ["portable"]
    assert [each["form"] for each in listed["artifacts"]] == forms * 2
    for each in listed["artifacts"]:
        counts = {count["format"]: count["products"] for count in each["census"]}
        own = each["form"] == "onnxruntime"
        # Four layers a block and the query of the last: all but patches, attention and head.
        assert counts[bundle.name] == 4 * 4 + 1
        # What else attention multiplies: one operator, or with 8-bit scores its values, or both products.
        assert counts["fp32" if own else "fp16"] == 2 + (4 if own else 2 * 4)
    assert "8-bit ranges: 64 images of the packaged digits" in (bundle / "report.md").read_text()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_gets_its_own_form(bundle: Path, backend: str) -> None:
    model, size = load(bundle, backend), Resolution.parse("32")
    image, expected = golden_of(bundle / golden.name(size))
    own = bundle.name == "int8" and backend == "onnxruntime"
    assert model.describe(size).endswith("model-32.onnxruntime.onnx" if own else "model-32.onnx")
    assert (model.run(image).argmax(1) == expected.argmax(1)).mean() > 0.6


def test_a_right_graph_has_no_jump(bundle: Path) -> None:
    for each in by_layer(bundle):
        assert each.jump is None, each.sentence()
        assert [layer.place.rpartition(".")[2] for layer in each.errors] == ["attention", "mlp"] * 4


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--precision", "int8"), 2, "--precision int8 is measured on images of the job: give --calib DIR"),
        (("--calib", "digits"), 2, "--calib is for int8 and fp8, but the precision is fp32: leave one out"),
        (("--precision", "fp8", "--calib", "nowhere"), 1, "--calib nowhere holds no images"),
        (
            ("--precision", "fp8", "--calib", "digits", "--engine", "tensorrt-rtx", "--sm", "86,89"),
            2,
            "SM 86 has no fp8: it begins with SM 89; use --precision int8",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    arguments: tuple[str, ...], code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", "rope_mixed_deit_digits", "--res", "32", "-q", "--out", str(tmp_path / "out"))
    assert cli.run([*options, *arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_calibration_takes_a_folders_images_spread_evenly(tmp_path: Path) -> None:
    for index in range(100):
        folder = tmp_path / "photos" / f"{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index).save(folder / f"{index:03}.png")
    (tmp_path / "photos" / "note.txt").write_text("no image")
    taken = [each() for each in calibration.pictures(str(tmp_path / "photos"))]
    assert len(taken) == calibration.MOST
    assert {image.mode for image in taken} == {"RGB"}
    levels = [image.getpixel((0, 0))[0] for image in taken]  # type: ignore[index]
    assert len(set(levels)) == calibration.MOST
    assert {level % 3 for level in levels} == {0, 1, 2}

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(PHOTOS[0].read_bytes()[:100])
    with pytest.raises(InputError, match=r"1 of 1 pictures of --calib .*broken can't be read, such as .*a.png: "):
        calibration.pictures(str(broken))


def test_targets_are_those_that_have_the_precision() -> None:
    try:
        rtx = TensorRtRtx()
    except BackendError as error:
        pytest.skip(str(error))

    def spec(precision: Precision, *targets: str) -> EngineSpec:
        return EngineSpec(runtime=rtx.runtime, precision=precision, targets=targets, profiles=())

    assert rtx.targets(spec("fp8")) == tuple(each for each in rtx.all_targets if int(each) >= 89)
    assert "80" in rtx.targets(spec("int8"))
    with pytest.raises(UsageError, match="SM 75 .Turing. has no bfloat16"):
        rtx.check(spec("bf16", "75"))


def test_an_eight_bit_graph_that_multiplies_in_floats_is_refused(bundle: Path) -> None:
    """The other form's policy: there, what is no linear layer must be float32."""
    found, _ = census.of_graph(bundle / "model-32.onnx", bundle.name, "onnxruntime")  # type: ignore[arg-type]
    assert len(found.faults) == 2 + 2 * 4
    assert np.isclose(found.counts[bundle.name].products, 17)
