"""L0: tables against the formula in float64, and against timm's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.layers.pos_embed_sincos import get_mixed_freqs, get_mixed_grid

from ropevit_export.models import frequencies
from ropevit_export.models.spec import INDEX, Coordinates, RopeSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.rope.tables import Rotation, along
from ropevit_export.values import Resolution, Weights
from tests.conftest import tables_of

GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))
NO_WEIGHTS = Weights(tensors={}, classes=0)
DEIT_AXIAL = RopeSpec(kind="axial", theta=100.0)
CENTRED = Coordinates(centred=True)
# PE's offset, EVA-02's reference grid, DINOv3's centred axes.
COORDINATES = (
    INDEX,
    Coordinates(offset=1.0),
    Coordinates(reference=16),
    Coordinates(offset=1.0, reference=24),
    CENTRED,
)


def mixed_freqs(seed: int, heads: int = 3, pairs: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, heads, pairs)).astype(np.float32)


def where(coordinates: Coordinates, index: int, extent: int) -> float:
    """The formulas once more, number by number."""
    if coordinates.centred:
        return 2 * np.pi * (2 * (index + 0.5) / extent - 1)
    return (index + coordinates.offset) * (coordinates.reference / extent if coordinates.reference else 1)


@given(grid=GRIDS, prefix=st.integers(0, 5), seed=st.integers(0, 9), coordinates=st.sampled_from(COORDINATES))
@settings(deadline=None, max_examples=40)
def test_every_entry_is_the_rounded_formula(
    grid: tuple[int, int], prefix: int, seed: int, coordinates: Coordinates
) -> None:
    freqs = mixed_freqs(seed)
    cos, sin = Rotation(freqs=freqs, coordinates=coordinates).full(grid, prefix)
    rng = np.random.default_rng(seed)
    row, column, head, pair = (int(rng.integers(extent)) for extent in (*grid, 3, 16))
    x, y = where(coordinates, column, grid[1]), where(coordinates, row, grid[0])
    theirs = x * float(freqs[0, head, pair]) + y * float(freqs[1, head, pair])
    token = prefix + row * grid[1] + column
    np.testing.assert_allclose(cos[token, head, pair], np.cos(theirs), atol=6.1e-8)
    np.testing.assert_allclose(sin[token, head, pair], np.sin(theirs), atol=6.1e-8)
    assert len(cos) == len(sin) == prefix + grid[0] * grid[1]


@given(grid=GRIDS, coordinates=st.sampled_from(COORDINATES))
@settings(deadline=None, max_examples=25)
def test_factors_multiply_to_the_full_table(grid: tuple[int, int], coordinates: Coordinates) -> None:
    """Of a limit beyond the grid: a slice where coordinates are the index, an extent's own rows where not."""
    rotation = Rotation(freqs=mixed_freqs(0), coordinates=coordinates)
    cos, sin = rotation.full(grid, 0)
    parts = []
    for pair, extent, limit in zip(rotation.factors((40, 48)), (grid[1], grid[0]), (48, 40), strict=True):
        start = extent * (extent - 1) // 2 if coordinates.follow_extent else 0
        assert len(pair[0]) == len(pair[1]) == (limit * (limit + 1) // 2 if coordinates.follow_extent else limit)
        parts.append([table[start : start + extent].astype(np.float64) for table in pair])
    (cos_x, sin_x), (cos_y, sin_y) = parts
    ours_cos = cos_x[None] * cos_y[:, None] - sin_x[None] * sin_y[:, None]
    ours_sin = sin_x[None] * cos_y[:, None] + cos_x[None] * sin_y[:, None]
    np.testing.assert_allclose(ours_cos.reshape(cos.shape), cos, atol=2e-7)
    np.testing.assert_allclose(ours_sin.reshape(sin.shape), sin, atol=2e-7)


def test_a_smaller_grids_table_is_no_slice_where_coordinates_follow_the_extent() -> None:
    for coordinates in COORDINATES:
        slices = np.allclose(along(coordinates, 20)[:10], along(coordinates, 10))
        assert slices != coordinates.follow_extent


def test_prefix_rows_are_the_identity() -> None:
    cos, sin = Rotation(freqs=frequencies.axial(DEIT_AXIAL, 64), coordinates=INDEX).full((3, 5), 1)
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    assert (np.abs(sin[2:]).max(axis=(1, 2)) > 0).all()


def test_axial_tables_are_timms() -> None:
    cos, sin = Rotation(freqs=frequencies.axial(DEIT_AXIAL, 64), coordinates=INDEX).full((5, 9), 0)
    module = RotaryEmbeddingCat(64, temperature=100.0, in_pixels=False, feat_shape=[5, 9], grid_indexing="xy")
    theirs = module.get_embed().numpy()  # sin and cos, each pair twice
    np.testing.assert_allclose(sin[:, 0], theirs[:, :64:2], atol=2e-6)
    np.testing.assert_allclose(cos[:, 0], theirs[:, 64::2], atol=2e-6)


def test_scaled_and_offset_tables_are_timms() -> None:
    """EVA-02's grid scaled to 16, rows first; Perception Encoder's offset, columns first."""
    for first, indexing, switch in (("rows", "ij", {"reference": 16}), ("columns", "xy", {"offset": 1.0})):
        rope = RopeSpec(kind="axial", theta=1e4, first=first, coordinates=Coordinates(**switch))  # type: ignore[arg-type]
        cos, sin = Rotation(freqs=frequencies.axial(rope, 64), coordinates=rope.coordinates).full((5, 9), 0)
        module = RotaryEmbeddingCat(
            64, temperature=1e4, in_pixels=False, feat_shape=[5, 9], grid_indexing=indexing,
            ref_feat_shape=[16, 16] if "reference" in switch else None, grid_offset=switch.get("offset", 0.0),
        )  # fmt: skip
        theirs = module.get_embed().numpy()
        np.testing.assert_allclose(sin[:, 0], theirs[:, :64:2], atol=3e-6)
        np.testing.assert_allclose(cos[:, 0], theirs[:, 64::2], atol=3e-6)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("grid", [(5, 9), (16, 16), (32, 48)])
def test_dinov3_tables_are_timms(width: int, grid: tuple[int, int]) -> None:
    rope = RopeSpec(kind="axial", theta=100.0, layout="half", first="rows", coordinates=CENTRED)
    cos, sin = Rotation(freqs=frequencies.axial(rope, width), coordinates=CENTRED).full(grid, 0)
    theirs = RotaryEmbeddingDinoV3(width, temperature=100.0, feat_shape=list(grid), rotate_half=True).get_embed()
    theirs_sin, theirs_cos = theirs.numpy().reshape(-1, 2, 2, width // 2).transpose(1, 2, 0, 3)  # each half twice
    for half in (0, 1):
        np.testing.assert_allclose(sin[:, 0], theirs_sin[half], atol=2e-6)
        np.testing.assert_allclose(cos[:, 0], theirs_cos[half], atol=2e-6)


def test_mixed_tables_are_timms() -> None:
    freqs = mixed_freqs(1)
    cos, sin = Rotation(freqs=freqs, coordinates=INDEX).full((5, 9), 0)
    theirs = get_mixed_freqs(torch.from_numpy(freqs), *get_mixed_grid([5, 9], grid_indexing="xy")).numpy()
    np.testing.assert_allclose(sin.transpose(1, 0, 2), theirs[..., :32:2], atol=5e-6)
    np.testing.assert_allclose(cos.transpose(1, 0, 2), theirs[..., 32::2], atol=5e-6)


def test_grids_of_the_same_size_differ() -> None:
    """7x28 and 14x14 have as many tokens; a table chosen by their number would be wrong."""
    spec = find_model("rope_axial_deit_small")
    wide = tables_of(spec, NO_WEIGHTS, Resolution(height=7 * 16, width=28 * 16))
    square = tables_of(spec, NO_WEIGHTS, Resolution(height=14 * 16, width=14 * 16))
    assert wide[0][0].shape == square[0][0].shape
    assert not np.allclose(wide[0][0], square[0][0])


@pytest.mark.parametrize(("model", "distinct"), [("rope_axial_deit_small", 1), ("swin_rope_axial_tiny", 1)])
def test_blocks_that_turn_alike_share_a_table(model: str, distinct: int) -> None:
    tables = tables_of(find_model(model), NO_WEIGHTS, Resolution(height=224, width=224))
    assert len(tables) == 12
    assert len({id(pair) for pair in tables}) == distinct


def test_plain_models_have_no_tables() -> None:
    assert tables_of(find_model("deit_small"), NO_WEIGHTS, Resolution(height=224, width=224)) == []
