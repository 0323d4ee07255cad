"""L1 and L2: folded attention against a plain one, the traced graph against the reference, in ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.pos_embed_sincos import get_mixed_freqs, get_mixed_grid

from ropevit_export import passes
from ropevit_export.bundle import onnx_file
from ropevit_export.images.preprocess import normalise
from ropevit_export.models.spec import INDEX
from ropevit_export.parity.samples import pixels
from ropevit_export.request import Request
from ropevit_export.rope.tables import Rotation
from ropevit_export.trace import swin
from ropevit_export.trace.attention import Attention
from ropevit_export.trace.export import trace, trace_dynamic
from ropevit_export.trace.positions import TableBank
from ropevit_export.values import Dim, Graph, Resolution
from tests.conftest import Case

Make = Callable[..., Case]


def run(path: Path, feed: np.ndarray, *, optimised: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, {session.get_inputs()[0].name: feed})[0]
    return out


def exported(case: Case, path: Path, **io: object) -> Graph:
    spec = case.spec
    tables = case.tables
    graph = passes.run(trace(spec, case.sized, tables, case.io(**io)), "fp32")  # type: ignore[arg-type]
    facts = onnx_file.metadata(spec, "baked", Request(model=spec, resolutions=(case.resolution,)).preprocess, {})
    onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), facts)
    return graph


def test_folded_attention_is_the_plain_one() -> None:
    """timm's rotation of adjacent pairs, torch's attention, LayerScale after the projection; ours has none of these."""
    heads, width, grid = 3, 16, (4, 5)
    dim, tokens = heads * width, 1 + 4 * 5
    rng = torch.Generator().manual_seed(0)
    shapes = {"attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,), "attn.proj.weight": (dim, dim),
              "attn.proj.bias": (dim,)}  # fmt: skip
    tensors = {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()}
    gain = torch.rand(dim, generator=rng)
    x = torch.randn(2, tokens, dim, generator=rng)
    freqs = torch.randn(2, heads, width // 2, generator=rng)

    (cos, sin), *_ = TableBank([Rotation(freqs=freqs.numpy(), coordinates=INDEX).full(grid, 1)])(*grid)
    ours = Attention(tensors, "", heads=heads, reorder=True, gain=gain, first_only=False)(x, cos, sin)
    last = Attention(tensors, "", heads=heads, reorder=True, gain=gain, first_only=True)
    first = last(x, cos, sin, query_token=x[:, :1])

    qkv = x @ tensors["attn.qkv.weight"].T + tensors["attn.qkv.bias"]
    q, k, v = qkv.reshape(2, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    turn = get_mixed_freqs(freqs, *get_mixed_grid(list(grid), grid_indexing="xy"))
    q, k = (torch.cat([t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], turn)], 2) for t in (q, k))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, tokens, dim)
    theirs = (mixed @ tensors["attn.proj.weight"].T + tensors["attn.proj.bias"]) * gain
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    torch.testing.assert_close(first, theirs[:, :1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("model", ["rope_mixed_ape_deit_small", "swin_rope_axial_tiny", "swin_tiny"])
@pytest.mark.parametrize("optimised", [True, False])
def test_the_graph_answers_as_the_reference(case: Make, model: str, optimised: bool, tmp_path: Path) -> None:
    each = case(model, "64x96")
    exported(each, tmp_path / "model.onnx")
    ours = np.concatenate([run(tmp_path / "model.onnx", image[None], optimised=optimised) for image in each.images])
    np.testing.assert_allclose(ours, each.theirs, atol=2e-5)


@pytest.mark.parametrize("model", ["rope_axial_deit_small", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize("output", ["pooled", "tokens"])
def test_features_are_the_references(case: Make, model: str, output: str, tmp_path: Path) -> None:
    each = case(model, "64", output)
    exported(each, tmp_path / "model.onnx", output=output)
    ours = run(tmp_path / "model.onnx", each.images[:1])
    np.testing.assert_allclose(ours, each.theirs[:1], atol=5e-5)


@pytest.mark.parametrize("model", ["rope_axial_deit_small", "swin_tiny"])
def test_a_dynamic_batch_takes_any_size(case: Make, model: str, tmp_path: Path) -> None:
    each = case(model, "64")
    exported(each, tmp_path / "model.onnx", batch=Dim(min=1, opt=2, max=8))
    for batch in (1, 2, 3, 8):
        chosen = np.arange(batch) % len(each.images)
        ours = run(tmp_path / "model.onnx", each.images[chosen])
        np.testing.assert_allclose(ours, each.theirs[chosen], atol=2e-5)


def exported_dynamic(case: Case, path: Path, limit: Resolution, **io: object) -> Graph:
    spec = case.spec
    shape = dataclasses.replace(case.io(**io), resolution=limit, rope="dynamic")  # type: ignore[arg-type]
    graph = passes.run(trace_dynamic(spec, case.weights, case.factors(limit), shape), "fp32")
    preprocess = Request(model=spec, resolutions=(limit,)).preprocess
    facts = onnx_file.metadata(spec, "dynamic", preprocess, {})
    onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), facts)
    return graph


@pytest.mark.parametrize("model", ["rope_axial_deit_small", "rope_mixed_ape_deit_small", "deit_small"])
def test_one_dynamic_graph_serves_every_size(case: Make, model: str, tmp_path: Path) -> None:
    """Up- and downsized from 14x14, square and not, one row, the limit itself; batch 1 to 8."""
    limit = Resolution(height=256, width=320)
    exported_dynamic(case(model, "64"), tmp_path / "model.onnx", limit, batch=Dim(min=1, opt=2, max=8))
    for size in ("224", "16", "16x320", "256x16", "112x208", "256x320"):
        each = case(model, size)
        for batch in (1, 3, 8):
            chosen = np.arange(batch) % len(each.images)
            ours = run(tmp_path / "model.onnx", each.images[chosen])
            np.testing.assert_allclose(ours, each.theirs[chosen], atol=2e-5, err_msg=size)


def test_grids_of_as_many_tokens_get_their_own_tables(case: Make, tmp_path: Path) -> None:
    """7x28 and 14x14 have 196 tokens each; tables picked by their number would fail here."""
    limit = Resolution(height=224, width=448)
    exported_dynamic(case("rope_mixed_deit_small", "64"), tmp_path / "model.onnx", limit)
    for size in ("112x448", "224"):
        each = case("rope_mixed_deit_small", size)
        np.testing.assert_allclose(run(tmp_path / "model.onnx", each.images[:1]), each.theirs[:1], atol=2e-5)


def test_dynamic_tables_take_the_room_of_two_sides(case: Make, tmp_path: Path) -> None:
    each = case("rope_mixed_deit_small", "64")
    sizes = {}
    for side in (224, 1024):
        graph = exported_dynamic(each, tmp_path / "model.onnx", Resolution(height=side, width=side))
        sizes[side] = sum(value.const_value.nbytes for value in graph.model.graph.initializers.values())  # type: ignore[union-attr]
    pairs = each.spec.dims[0] // 2
    blocks = len(each.spec.blocks)
    assert sizes[1024] - sizes[224] == 2 * 2 * 4 * pairs * blocks * (64 - 14)


def test_a_size_over_the_limit_is_an_error_and_not_an_answer(case: Make, tmp_path: Path) -> None:
    exported_dynamic(case("rope_axial_deit_small", "64"), tmp_path / "model.onnx", Resolution(height=64, width=64))
    with pytest.raises(Exception, match="Non-zero status code"):
        run(tmp_path / "model.onnx", case("rope_axial_deit_small", "96").images[:1])


def test_raw_pixels_are_normalised_in_the_graph(case: Make, tmp_path: Path) -> None:
    each = case("rope_axial_deit_small", "64")
    graph = exported(each, tmp_path / "model.onnx", pixels=True)
    # TensorRT and TensorRT-RTX take uint8 from outside, but can do nothing with it than cast it.
    assert [node.op_type for node in graph.model.graph.inputs[0].consumers()] == ["Cast"]
    preprocess = Request(model=each.spec, resolutions=(each.resolution,)).preprocess
    raw = pixels(preprocess, each.resolution, seed=0)
    assert np.array_equal(normalise(raw, preprocess), each.images)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", raw[:1]), each.theirs[:1], atol=3e-5)


def test_the_last_block_computes_one_token(case: Make, tmp_path: Path) -> None:
    each = case("rope_axial_deit_small", "64")
    logits, tokens = (exported(each, tmp_path / f"{out}.onnx", output=out) for out in ("logits", "tokens"))
    widths = [
        [str(node.outputs[0].shape) for node in graph.model.graph if node.op_type == "Gelu"]
        for graph in (logits, tokens)
    ]
    assert widths[0] == ["[1,17,1536]", "[1,1,1536]"]
    assert widths[1] == ["[1,17,1536]"] * 2


def test_the_same_export_twice_gives_the_same_bytes(case: Make, tmp_path: Path) -> None:
    each = case("rope_mixed_deit_small", "64")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        exported(each, tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_file_says_what_it_is_and_not_where_it_was_made(case: Make, tmp_path: Path) -> None:
    exported(case("rope_mixed_deit_small", "64"), tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    assert model.metadata_props["model"] == "rope_mixed_deit_small_patch16_LS"
    assert model.metadata_props["rope"] == "baked"
    assert '"crop": 1.0' in model.metadata_props["preprocess"]
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((14, 14), (7, 7), (3, 3)), ((8, 12), (4, 6), (2, 3)), ((14, 7), (7, 7), (3, 0))]
)
def test_shift_masks_are_timms(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(dim=32, input_resolution=size, num_heads=1, window_size=window, shift_size=shift)
    assert torch.equal(swin.shift_mask(size, window, shift), block.attn_mask)


@pytest.mark.parametrize("window", [(7, 7), (3, 5)])
def test_position_biases_are_timms(window: tuple[int, int]) -> None:
    from timm.models.swin_transformer import WindowAttention

    attention = WindowAttention(dim=96, num_heads=3, window_size=window)
    ours = swin.position_bias(attention.relative_position_bias_table.detach(), window)
    assert torch.equal(ours, attention._get_rel_pos_bias()[0])
