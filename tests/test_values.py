from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropevit_export.errors import UsageError
from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Dim, Resolution


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_a_resolution_reads_back_what_it_prints(height: int, width: int) -> None:
    resolution = Resolution(height=height, width=width)
    assert Resolution.parse(str(resolution)) == resolution


def test_a_resolution_is_height_by_width() -> None:
    assert Resolution.parse("256x352") == Resolution(height=256, width=352)


@pytest.mark.parametrize("text", ["", "x", "384x", "12.5", "-16", "384x384x3", "١٦٠ "])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size: give N for a square or HxW"):
        Resolution.parse(text)


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="0x0 has no pixels"):
        Resolution.parse("0")


def test_batch_reads_min_opt_max() -> None:
    assert Dim.parse("1:8:32") == Dim(min=1, opt=8, max=32)
    assert Dim.parse("4").is_static


@pytest.mark.parametrize("text", ["8:1:32", "0", "4:2:1"])
def test_a_batch_out_of_order_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="needs 1 <= min <= opt <= max"):
        Dim.parse(text)


@pytest.mark.parametrize("text", ["", "1:8", "a", "1:2:3:4", "-1"])
def test_what_is_not_a_batch_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither N nor MIN:OPT:MAX"):
        Dim.parse(text)


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [
        (
            "deit_small",
            "390x384",
            "390x384 does not suit patch 16: height must be a multiple of 16; nearest: 384 and 400",
        ),
        ("deit_small", "384x390", "width must be a multiple of 16; nearest: 384 and 400"),
        (
            "swin_tiny",
            "240",
            "240x240 does not suit window grid 32: height must be a multiple of 32; nearest: 224 and 256",
        ),
        ("swin_tiny", "16", "nearest: 32"),
    ],
)
def test_a_size_off_the_grid_names_the_nearest(model: str, size: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Request(model=find_model(model), resolutions=(Resolution.parse(size),))


def test_a_request_needs_a_size_and_no_size_twice() -> None:
    spec, size = find_model("deit_small"), Resolution.parse("224")
    with pytest.raises(UsageError, match="give at least one --res"):
        Request(model=spec, resolutions=())
    with pytest.raises(UsageError, match="named twice: 224, 224"):
        Request(model=spec, resolutions=(size, size))
