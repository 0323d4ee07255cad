"""The evaluation transform against torchvision's, which is the authors'."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from ropevit_export.images.preprocess import crop, normalise
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.request import Request
from ropevit_export.values import Resolution


@pytest.mark.parametrize("size", [224, 384, 320])
@pytest.mark.parametrize("model", ["rope_mixed_deit_small", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("turned", [False, True])
def test_square_crops_are_torchvisions(model: str, size: int, photo, turned: bool) -> None:  # type: ignore[no-untyped-def]
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
    with Image.open(photo) as image:
        image = image.convert("RGB")
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
