"""L0: tables against the formula in float64, and against timm's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import RotaryEmbeddingCat
from timm.layers.pos_embed_sincos import get_mixed_freqs, get_mixed_grid

from ropevit_export.models.spec import RopeSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.rope.tables import RopeTable, axial_table, block_tables, mixed_table
from ropevit_export.values import Resolution

GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def mixed_freqs(seed: int, heads: int = 3, pairs: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, heads, pairs)).astype(np.float32)


def angle(table: RopeTable, row: int, column: int, head: int, pair: int) -> float:
    return float(column * table.freqs[0, head, pair] + row * table.freqs[1, head, pair])


@given(grid=GRIDS, prefix=st.integers(0, 2), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_every_entry_is_the_rounded_formula(grid: tuple[int, int], prefix: int, seed: int) -> None:
    table = mixed_table(mixed_freqs(seed), grid=grid, prefix=prefix)
    cos, sin = table.full()
    rng = np.random.default_rng(seed)
    row, column, head, pair = (int(rng.integers(extent)) for extent in (*grid, 3, 16))
    theirs = angle(table, row, column, head, pair)
    token = prefix + row * grid[1] + column
    assert cos[token, head, pair] == np.float32(np.cos(theirs))
    assert sin[token, head, pair] == np.float32(np.sin(theirs))
    assert len(cos) == len(sin) == prefix + grid[0] * grid[1]


@given(grid=GRIDS)
@settings(deadline=None, max_examples=25)
def test_factors_multiply_to_the_full_table(grid: tuple[int, int]) -> None:
    table = mixed_table(mixed_freqs(0), grid=grid, prefix=0)
    cos, sin = table.full()
    (cos_x, sin_x), (cos_y, sin_y) = (tuple(part.astype(np.float64) for part in pair) for pair in table.factors())
    ours_cos = cos_x[None] * cos_y[:, None] - sin_x[None] * sin_y[:, None]
    ours_sin = sin_x[None] * cos_y[:, None] + cos_x[None] * sin_y[:, None]
    np.testing.assert_allclose(ours_cos.reshape(cos.shape), cos, atol=2e-7)
    np.testing.assert_allclose(ours_sin.reshape(sin.shape), sin, atol=2e-7)


def test_prefix_rows_are_the_identity() -> None:
    cos, sin = axial_table(RopeSpec(kind="axial", theta=100.0), head_dim=64, grid=(3, 5), prefix=1).full()
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    assert (sin[1:].any(axis=(1, 2))[1:]).all()


def test_axial_tables_are_timms() -> None:
    cos, sin = axial_table(RopeSpec(kind="axial", theta=100.0), head_dim=64, grid=(5, 9), prefix=0).full()
    module = RotaryEmbeddingCat(64, temperature=100.0, in_pixels=False, feat_shape=[5, 9], grid_indexing="xy")
    theirs = module.get_embed().numpy()  # sin and cos, each pair twice
    np.testing.assert_allclose(sin[:, 0], theirs[:, :64:2], atol=2e-6)
    np.testing.assert_allclose(cos[:, 0], theirs[:, 64::2], atol=2e-6)


def test_mixed_tables_are_timms() -> None:
    freqs = mixed_freqs(1)
    cos, sin = mixed_table(freqs, grid=(5, 9), prefix=0).full()
    theirs = get_mixed_freqs(torch.from_numpy(freqs), *get_mixed_grid([5, 9], grid_indexing="xy")).numpy()
    np.testing.assert_allclose(sin.transpose(1, 0, 2), theirs[..., :32:2], atol=5e-6)
    np.testing.assert_allclose(cos.transpose(1, 0, 2), theirs[..., 32::2], atol=5e-6)


def test_grids_of_the_same_size_differ() -> None:
    """7x28 and 14x14 have as many tokens; a table chosen by their number would be wrong."""
    spec = find_model("rope_axial_deit_small")
    wide = block_tables(spec, {}, Resolution(height=7 * 16, width=28 * 16))
    square = block_tables(spec, {}, Resolution(height=14 * 16, width=14 * 16))
    assert wide is not None
    assert square is not None
    assert wide[0][0].shape == square[0][0].shape
    assert not np.allclose(wide[0][0], square[0][0])


@pytest.mark.parametrize(("model", "distinct"), [("rope_axial_deit_small", 1), ("swin_rope_axial_tiny", 1)])
def test_blocks_that_turn_alike_share_a_table(model: str, distinct: int) -> None:
    tables = block_tables(find_model(model), {}, Resolution(height=224, width=224))
    assert tables is not None
    assert len(tables) == 12
    assert len({id(pair) for pair in tables}) == distinct


def test_plain_models_have_no_tables() -> None:
    assert block_tables(find_model("deit_small"), {}, Resolution(height=224, width=224)) is None
