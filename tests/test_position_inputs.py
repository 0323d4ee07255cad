"""Position inputs: filled as formula and torch say, and by a host that knows nothing but `docs/position-inputs.md`."""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ropevit_export import cli, kernels
from ropevit_export.bundle import manifest, positions
from ropevit_export.errors import BundleError
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.rope import inputs
from ropevit_export.rope.tables import block_factors
from ropevit_export.runtime import host_inputs, load
from ropevit_export.values import Resolution, Weights
from tests.conftest import frequencies_of, tables_of

LIMIT = Resolution(height=320, width=448)
RNG = np.random.default_rng(0)
FREQS = torch.from_numpy(RNG.standard_normal((2, 12, 6 * 32)).astype(np.float32))
WEIGHTS = Weights(tensors={"freqs": FREQS}, classes=0)
EMBED = RNG.standard_normal((14, 14, 384)).astype(np.float32)


def parts_of(spec: ModelSpec) -> dict[str, np.ndarray]:
    coordinates = spec.rope.coordinates
    factors = block_factors(frequencies_of(spec, WEIGHTS), coordinates, spec.grid(LIMIT))
    return inputs.parts(factors, None, by_extent=coordinates.follow_extent)


@pytest.mark.parametrize(("model", "tables"), [("rope_axial_deit_small", 1), ("rope_mixed_deit_small", 12)])
@pytest.mark.parametrize("size", ["224", "112x448", "16", "320x448"])
def test_filled_tables_are_those_of_the_grid(model: str, tables: int, size: str) -> None:
    spec, resolution = find_model(model), Resolution.parse(size)
    filled = inputs.fill(parts_of(spec), *spec.grid(resolution), spec.prefix)
    theirs = tables_of(spec, WEIGHTS, resolution)
    assert set(filled) == {"cos", "sin"}
    for name, kind in (("cos", 0), ("sin", 1)):
        assert filled[name].dtype == np.float32
        assert len(filled[name]) == tables
        for index in range(tables):
            np.testing.assert_allclose(filled[name][index], theirs[index][kind], atol=3e-7)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), grid=st.sampled_from([(14, 14), (7, 28)]))
@settings(deadline=None, max_examples=25)
def test_the_embedding_is_resized_as_torch_does(rows: int, columns: int, grid: tuple[int, int]) -> None:
    embed = EMBED.reshape(*grid, 384)
    ours = inputs.fill(inputs.parts([], embed, by_extent=False), rows, columns, 1)["pos_embed"]
    image = torch.from_numpy(embed)[None].permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(image.double(), size=(rows, columns), mode="bicubic")
    np.testing.assert_allclose(ours, theirs[0].flatten(1).T, atol=1e-6)


def test_an_embedding_of_the_grid_itself_is_untouched() -> None:
    parts = inputs.parts([], EMBED, by_extent=False)
    assert np.array_equal(inputs.fill(parts, 14, 14, 1)["pos_embed"], EMBED.reshape(-1, 384))


@pytest.mark.parametrize("model", ["rope_axial_deit_small", "rope_mixed_deit_small"])
def test_grids_of_as_many_tokens_get_their_own_tables(model: str) -> None:
    parts = parts_of(find_model(model))
    square, wide = inputs.fill(parts, 14, 14, 1), inputs.fill(parts, 7, 28, 1)
    assert square["cos"].shape == wide["cos"].shape
    assert np.abs(square["cos"] - wide["cos"]).max() > 0.5


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / positions.NAME).write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(BundleError, match="is not a file of position tables"):
        positions.read(tmp_path / positions.NAME, (14, 14))


@pytest.fixture(scope="module", params=["shallow_rope_axial_ape_deit_small", "shallow_rope_mixed_deit_small"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "inputs"
    options = ("--res", "48x112", "--rope", "inputs", "--weights", "random", "--engine", "none", "-q")
    assert cli.run(["--model", request.param, *options, "--out", str(folder)]) == 0
    return folder


def tensors(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """A safetensors file of floats as the page describes it: shape and values by name."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name.startswith("filled."):  # samples of what a host fills
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        assert entry["dtype"] == "F32"
        found[name] = (entry["shape"], list(struct.unpack(f"<{(end - begin) // 4}f", content[begin:end])))
    return found


def filled_by_the_page(path: Path, rows: int, columns: int) -> dict[str, np.ndarray]:
    """`docs/position-inputs.md`, word for word, on lists of floats."""
    file, filled = tensors(path), {}
    if "cos_x" in file:
        (count, most_columns, heads, pairs), (_, most_rows, _, _) = file["cos_x"][0], file["cos_y"][0]
        cos, sin = [], []
        for table in range(count):
            cos += [1.0] * heads * pairs
            sin += [0.0] * heads * pairs
            for r, c, entry in itertools.product(range(rows), range(columns), range(heads * pairs)):
                at_x = (table * most_columns + c) * heads * pairs + entry
                at_y = (table * most_rows + r) * heads * pairs + entry
                cx, sx, cy, sy = (file[name][1][at] for name, at in
                                  (("cos_x", at_x), ("sin_x", at_x), ("cos_y", at_y), ("sin_y", at_y)))  # fmt: skip
                cos.append(cx * cy - sx * sy)
                sin.append(sx * cy + cx * sy)
        shape = (count, 1 + rows * columns, heads, pairs)
        filled = {"cos": np.array(cos, np.float32).reshape(shape), "sin": np.array(sin, np.float32).reshape(shape)}
    if "pos_embed" in file:
        (side, _, width), values = file["pos_embed"]
        embed = np.array(values).reshape(side, side, width)
        lines = [sum(weight * embed[tap] for tap, weight in taps(r, rows, side)) for r in range(rows)]
        cells = [
            sum(weight * line[tap] for tap, weight in taps(c, columns, side)) for line in lines for c in range(columns)
        ]
        filled["pos_embed"] = np.array(cells, np.float32)
    return filled


def taps(index: int, extent: int, side: int) -> list[tuple[int, float]]:
    x = (index + 0.5) * side / extent - 0.5
    return [(min(max(k, 0), side - 1), kernel(abs(x - k))) for k in range(math.floor(x) - 1, math.floor(x) + 3)]


def kernel(d: float) -> float:
    return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3


@pytest.mark.parametrize("size", ["48x112", "16x80"])
def test_a_host_that_follows_the_page_gets_the_references_answers(bundle: Path, size: str) -> None:
    listed = json.loads((bundle / "manifest.json").read_text())
    artifact = listed["artifacts"][0]
    patch, resolution = artifact["dynamic"]["multiple"], Resolution.parse(size)
    golden = tensors(bundle / f"golden-{size}.safetensors")
    image, expected = (np.array(golden[name][1], np.float32).reshape(golden[name][0]) for name in ("image", "expected"))
    (tables,) = (each["path"] for each in artifact["files"] if each["kind"] == "positions")
    host = filled_by_the_page(bundle / tables, resolution.height // patch, resolution.width // patch)

    assert [each["name"] for each in artifact["inputs"]] == ["image", *host]
    for each in listed["artifacts"]:
        session = onnxruntime.InferenceSession(bundle / each["path"], providers=["CPUExecutionProvider"])
        (ours,) = session.run(None, {"image": image[:1], **host})
        np.testing.assert_allclose(ours, expected[:1], atol=2e-5)


@pytest.mark.parametrize("size", ["48x112", "16x80"])
def test_golden_files_hold_rows_of_what_a_host_fills(bundle: Path, size: str) -> None:
    """To the bit: a host in another language is compared with them."""
    listed, resolution = manifest.read(bundle), Resolution.parse(size)
    filled = host_inputs(bundle, listed.artifacts[0])(resolution)
    golden = load_file(bundle / f"golden-{size}.safetensors")
    assert {name for name in golden if name.endswith(".at")} == {f"filled.{name}.at" for name in filled}
    for name, array in filled.items():
        axis, at = (0 if name == "pos_embed" else 1), golden[f"filled.{name}.at"]
        assert at[0] == 0
        assert at[-1] == array.shape[axis] - 1
        assert np.array_equal(golden[f"filled.{name}"], array.take(at, axis))
    assert (listed.patch, listed.prefix) == (16, 1)


def test_one_loaded_bundle_serves_grids_of_as_many_tokens(bundle: Path) -> None:
    """3x4 and 2x6 patches, in turn: what was filled for one must not serve the other."""
    model = load(bundle)
    answers = []
    for size in ("48x64", "32x96", "48x64"):
        resolution = Resolution.parse(size)
        image = np.random.default_rng(0).standard_normal((1, 3, resolution.height, resolution.width)).astype(np.float32)
        fresh = load(bundle).run(image)
        answers.append(model.run(image))
        assert np.array_equal(answers[-1], fresh)
    assert np.array_equal(answers[0], answers[2])


def test_the_cubic_kernel_is_one_for_both_kinds_of_array() -> None:
    """Keys, 1981, equation 4, written as its two branches."""
    distance = np.random.default_rng(0).uniform(0, 3, 10_000)
    a, s = -0.75, distance
    inner, outer = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
    theirs = np.where(s < 1, inner, np.where(s < 2, outer, 0))
    np.testing.assert_allclose(kernels.cubic(distance), theirs, atol=1e-14)
    assert np.array_equal(kernels.cubic(torch.from_numpy(distance)).numpy(), kernels.cubic(distance))
