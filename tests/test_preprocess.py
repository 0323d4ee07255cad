"""The evaluation transform against torchvision's, which is the authors'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import PIL
import pytest
from PIL import Image
from torchvision import transforms

from ropevit_export import cli
from ropevit_export.images.preprocess import crop, normalise
from ropevit_export.models.spec import Transform
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.request import Request
from ropevit_export.runtime import load
from ropevit_export.values import Resolution


@pytest.mark.parametrize("size", [224, 384, 320])
@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("turned", [False, True])
def test_square_crops_are_torchvisions(model: str, size: int, photo: Path, turned: bool) -> None:
    spec = find_model(model)
    short_side = size if spec.window_of is None else int(256 / 224 * size)
    theirs = transforms.Compose(
        [
            transforms.Resize(short_side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
        if turned:
            image = image.transpose(Image.Transpose.ROTATE_90).crop((0, 0, image.height - 7, image.width))
        resolution = Resolution(height=size, width=size)
        preprocess = Request(model=spec, resolutions=(resolution,)).preprocess
        ours = normalise(crop(image, preprocess, resolution), preprocess)
        np.testing.assert_allclose(ours, theirs(image).numpy(), atol=2e-6)


@pytest.mark.parametrize("size", ["224x448", "448x224", "96x608"])
def test_other_crops_are_filled(size: str) -> None:
    resolution = Resolution.parse(size)
    preprocess = Request(model=find_model("swin_tiny"), resolutions=(resolution,)).preprocess
    with Image.open(PHOTOS[0]) as image:
        assert crop(image, preprocess, resolution).shape == (resolution.height, resolution.width, 3)


@pytest.mark.parametrize("size", ["256", "224x448"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_dinov3_squashes_as_its_authors_do(size: str, photo: Path) -> None:
    """Their `make_transform`: a bilinear, antialiased Resize to both sides."""
    resolution = Resolution.parse(size)
    preprocess = Request(model=find_model("dinov3_sat_large"), resolutions=(resolution,)).preprocess
    theirs = transforms.Compose(
        [
            transforms.Resize((resolution.height, resolution.width), transforms.InterpolationMode.BILINEAR),
            transforms.ToTensor(),
            transforms.Normalize((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
        ]
    )
    with Image.open(photo) as image:
        ours = normalise(crop(image, preprocess, resolution), preprocess)
        np.testing.assert_allclose(ours, theirs(image.convert("RGB")).numpy(), atol=2e-6)


TUNED = ("--mean", "0.5", "--std", "0.25,0.5,0.5", "--interpolation", "bilinear", "--crop", "0.9")


def test_a_fine_tuned_models_transform_is_in_the_manifest_and_in_the_graph(tmp_path: Path) -> None:
    """With raw pixels the graph normalises by what was given, not by ImageNet's numbers."""
    common = ("--model", "rope_mixed_deit_digits", "--res", "32", "--engine", "none", "-q", *TUNED)
    assert cli.run([*common, "--out", str(tmp_path / "plain")]) == 0
    assert cli.run([*common, "--pixels", "--out", str(tmp_path / "pixels")]) == 0
    plain, pixels = load(tmp_path / "plain"), load(tmp_path / "pixels")
    transform = plain.preprocess
    assert (transform.mean, transform.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert (transform.interpolation, transform.crop, transform.crop_mode) == ("bilinear", 0.9, "center")
    with Image.open(PHOTOS[0]) as image:
        raw, normalised = pixels.prepare(image), plain.prepare(image)
    np.testing.assert_allclose(
        normalised[0], (raw[0].transpose(2, 0, 1) / 255 - 0.5) / np.reshape((0.25, 0.5, 0.5), (3, 1, 1)), atol=1e-6
    )
    np.testing.assert_allclose(pixels.run(raw), plain.run(normalised), atol=2e-4)
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "pixels" / "model-32.onnx").metadata_props}
    assert json.loads(facts["preprocess"])["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--mean", "0.5,0.5", "'0.5,0.5' is neither one number nor three, such as 0.485,0.456,0.406."),
        ("--std", "0", "std (0.0, 0.0, 0.0) has a number that is not above 0"),
        ("--crop", "1.5", "crop 1.5 is not above 0 and at most 1"),
        ("--crop", "square", "--crop 'square' is neither squash nor a ratio, such as 0.875."),
        ("--interpolation", "cubic", "'cubic' is not one of 'bicubic', 'bilinear'"),
    ],
)
def test_a_transform_that_cannot_be_is_a_usage_error(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["--model", "dinov3_small", "--res", "64", option, value]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "size", "height_first"),
    [((341, 109), "192x48", True), ((128, 96), "64x48", False), ((640, 90), "64x80", True), ((64, 300), "32", False)],
)
def test_axes_are_resized_in_the_order_of_pillow_13(shape: tuple[int, int], size: str, height_first: bool) -> None:
    """Whatever Pillow is installed; what lies between the two is rounded."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    whole = Resolution.parse(size)
    squash = Transform(mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop=1.0, crop_mode="squash")
    ours = crop(image, squash, whole)
    orders = [(whole.width, image.height), (image.width, whole.height)]
    theirs = [
        np.asarray(
            image.resize(first, Image.Resampling.BICUBIC).resize((whole.width, whole.height), Image.Resampling.BICUBIC)
        )
        for first in orders
    ]
    assert [np.array_equal(ours, each) for each in theirs] == [not height_first, height_first]
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert np.array_equal(ours, np.asarray(image.resize((whole.width, whole.height), Image.Resampling.BICUBIC)))
