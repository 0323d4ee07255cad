"""L1 and L2: folded attention against a plain one, the traced graph against the reference, in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import gc
import linecache
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.pos_embed_sincos import get_mixed_freqs, get_mixed_grid
from torch.fx import graph_module

from ropevit_export import passes
from ropevit_export.bundle import onnx_file
from ropevit_export.images.preprocess import normalise
from ropevit_export.models.spec import INDEX
from ropevit_export.models.zoo import find_model
from ropevit_export.parity.samples import pixels
from ropevit_export.request import Request
from ropevit_export.rope import inputs
from ropevit_export.rope.tables import Rotation
from ropevit_export.trace import swin
from ropevit_export.trace.attention import Attention
from ropevit_export.trace.export import trace, trace_dynamic, trace_inputs
from ropevit_export.trace.positions import TableBank
from ropevit_export.trace.vit import last_block, only_class_token
from ropevit_export.values import Dim, Graph, Resolution, RopeMode
from tests.conftest import Case, outputs_of
from tests.rows import shallow

Make = Callable[..., Case]


def loaded(path: Path, *, optimised: bool = True) -> Callable[..., np.ndarray]:
    """The file's graph: images, and what the host fills, to its answer."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, **host: np.ndarray) -> np.ndarray:
        out: np.ndarray = session.run(None, {"image": images, **host})[0]
        return out

    return run


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
    spec = find_model("rope_mixed_deit_small")
    ours = Attention(spec, tensors, "attn", heads=heads, reorder=True, gain=gain)(x, cos, sin)
    last = Attention(spec, tensors, "attn", heads=heads, reorder=True, gain=gain, first_only=True)
    first = last(x, cos, sin, query_token=x[:, :1])

    qkv = x @ tensors["attn.qkv.weight"].T + tensors["attn.qkv.bias"]
    q, k, v = qkv.reshape(2, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    turn = get_mixed_freqs(freqs, *get_mixed_grid(list(grid), grid_indexing="xy"))
    q, k = (torch.cat([t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], turn)], 2) for t in (q, k))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, tokens, dim)
    theirs = (mixed @ tensors["attn.proj.weight"].T + tensors["attn.proj.bias"]) * gain
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    torch.testing.assert_close(first, theirs[:, :1], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "model", ["rope_mixed_ape_deit_small", "swin_rope_axial_tiny", pytest.param("swin_tiny", marks=pytest.mark.again)]
)
@pytest.mark.parametrize("optimised", [True, False])
def test_the_graph_answers_as_the_reference(case: Make, model: str, optimised: bool, tmp_path: Path) -> None:
    each = case(model, "64x96")
    exported(each, tmp_path / "model.onnx")
    run = loaded(tmp_path / "model.onnx", optimised=optimised)
    ours = np.concatenate([run(image[None]) for image in each.images])
    np.testing.assert_allclose(ours, each.theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("rope_axial_deit_small", "pooled"),
        ("rope_axial_deit_small", "tokens"),
        ("swin_rope_mixed_tiny", "pooled"),
        pytest.param("swin_rope_mixed_tiny", "tokens", marks=pytest.mark.again),
    ],
)
def test_features_are_the_references(case: Make, model: str, output: str, tmp_path: Path) -> None:
    each = case(model, "64", output)
    exported(each, tmp_path / "model.onnx", output=output)
    ours = loaded(tmp_path / "model.onnx")(each.images[:1])
    np.testing.assert_allclose(ours, each.theirs[:1], atol=5e-5)


@pytest.mark.parametrize("model", ["rope_axial_deit_small", pytest.param("swin_tiny", marks=pytest.mark.slow)])
def test_a_dynamic_batch_takes_any_size(case: Make, model: str, tmp_path: Path) -> None:
    each = case(model, "64")
    exported(each, tmp_path / "model.onnx", batch=Dim(min=1, opt=2, max=8))
    run = loaded(tmp_path / "model.onnx")
    for batch in (1, 2, 3, 8):
        chosen = np.arange(batch) % len(each.images)
        ours = run(each.images[chosen])
        np.testing.assert_allclose(ours, each.theirs[chosen], atol=2e-5)


LIMIT = Resolution(height=256, width=448)
ANY_BATCH = Dim(min=1, opt=2, max=8)


def exported_for_any_size(case: Case, path: Path, rope: RopeMode = "dynamic", limit: Resolution = LIMIT) -> Graph:
    spec = case.spec
    io = dataclasses.replace(case.io(batch=ANY_BATCH), resolution=limit, rope=rope)
    if rope == "dynamic":
        traced = trace_dynamic(spec, case.weights, case.factors(limit), io)
    else:
        io = dataclasses.replace(io, positions=spec.position_inputs)
        traced = trace_inputs(spec, case.weights, io)
    graph = passes.run(traced, "fp32")
    facts = onnx_file.metadata(spec, rope, Request(model=spec, resolutions=(limit,)).preprocess, {})
    onnx_file.write(graph, path, onnx_file.WeightFile(path=path.with_suffix(".data")), facts)
    return graph


def filled(case: Case, resolution: Resolution) -> dict[str, np.ndarray]:
    """What the host of a graph with position inputs fills at a size."""
    spec = case.spec
    embed = case.weights.tensors["pos_embed"].numpy().reshape(14, 14, -1) if spec.ape else None
    parts = inputs.parts(case.factors(LIMIT), embed, by_extent=False)
    return inputs.fill(parts, *spec.grid(resolution), spec.prefix)


@pytest.mark.parametrize(
    ("model", "rope"),
    [
        pytest.param("rope_axial_deit_small", "dynamic", marks=pytest.mark.again),
        ("rope_mixed_ape_deit_small", "dynamic"),
        pytest.param("deit_small", "dynamic", marks=pytest.mark.slow),
        ("rope_mixed_ape_deit_small", "inputs"),
    ],
)
def test_one_graph_serves_every_size(case: Make, model: str, rope: RopeMode, tmp_path: Path) -> None:
    """Up- and downsized from 14x14, square and not, one row, the limit itself; batch 1 to 8. 112x448 has as many tokens
    as 224: tables picked by their number would fail here.
    """
    exported_for_any_size(case(model, "64"), tmp_path / "model.onnx", rope)
    run = loaded(tmp_path / "model.onnx")
    for size in ("224", "112x448", "16", "16x320", "256x16", "112x208", "256x448"):
        each = case(model, size)
        host = filled(each, each.resolution) if rope == "inputs" else {}
        for batch in (1, 3, 8):
            chosen = np.arange(batch) % len(each.images)
            np.testing.assert_allclose(run(each.images[chosen], **host), each.theirs[chosen], atol=2e-5, err_msg=size)


def test_dynamic_tables_take_the_room_of_two_sides(case: Make, tmp_path: Path) -> None:
    """What a graph holds that the host of another fills: of every block cos and sin, a row a row and one a column, the
    embedding, and constants that resize it. Whole tables would be ten times as large.
    """
    each = case("rope_mixed_ape_deit_small", "64")
    graphs = [exported_for_any_size(each, tmp_path / "model.onnx", rope) for rope in ("dynamic", "inputs")]
    constants = [[value.const_value for value in graph.model.graph.initializers.values()] for graph in graphs]
    dynamic, filled_by_host = (sum(array.nbytes for array in arrays if array is not None) for arrays in constants)
    pairs, blocks, (rows, columns) = each.spec.dims[0] // 2, len(each.spec.blocks), each.spec.grid(LIMIT)
    tables, embedding = 2 * 4 * pairs * blocks * (rows + columns), 4 * each.weights.tensors["pos_embed"].numel()
    assert 0 <= dynamic - filled_by_host - tables - embedding < 4096


def test_a_size_over_the_limit_is_an_error_and_not_an_answer(case: Make, tmp_path: Path) -> None:
    exported_for_any_size(case("rope_axial_deit_small", "64"), tmp_path / "model.onnx")
    with pytest.raises(Exception, match="Non-zero status code"):
        loaded(tmp_path / "model.onnx")(case("rope_axial_deit_small", "272x96").images[:1])


def test_raw_pixels_are_normalised_in_the_graph(case: Make, tmp_path: Path) -> None:
    each = case("rope_axial_deit_small", "64")
    graph = exported(each, tmp_path / "model.onnx", pixels=True)
    # TensorRT and TensorRT-RTX take uint8 from outside, but can do nothing with it than cast it.
    assert [node.op_type for node in graph.model.graph.inputs[0].consumers()] == ["Cast"]
    preprocess = Request(model=each.spec, resolutions=(each.resolution,)).preprocess
    raw = pixels(preprocess, each.resolution, seed=0)
    assert np.array_equal(normalise(raw, preprocess), each.images)
    np.testing.assert_allclose(loaded(tmp_path / "model.onnx")(raw[:1]), each.theirs[:1], atol=3e-5)


@pytest.mark.parametrize(
    ("output", "one"),
    [("logits", True), ("cls", True), ("cls,features:0", True), ("cls,features:1", False), ("tokens,cls", False),
     ("features:0", False)],
)  # fmt: skip
def test_the_last_block_computes_one_token_where_nothing_else_is_read(output: str, one: bool) -> None:
    spec = shallow(find_model("rope_mixed_deit_small"))
    assert len(spec.blocks) == 2
    outputs = outputs_of(spec, output)
    assert last_block(spec, outputs) == (0 if output == "features:0" else 1)
    assert only_class_token(spec, outputs) == one


def test_the_last_block_computes_one_token(case: Make, tmp_path: Path) -> None:
    each = case("rope_axial_deit_small", "64")
    logits, tokens = (exported(each, tmp_path / f"{out}.onnx", output=out) for out in ("logits", "tokens"))
    widths = [
        [str(node.outputs[0].shape) for node in graph.model.graph if node.op_type == "Gelu"]
        for graph in (logits, tokens)
    ]
    assert widths[0] == ["[1,17,1536]", "[1,1,1536]"]
    assert widths[1] == ["[1,17,1536]"] * 2


@pytest.mark.usefixtures("traced_anew")
def test_the_same_export_twice_gives_the_same_bytes(case: Make, tmp_path: Path) -> None:
    each = case("rope_mixed_deit_small", "64")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        exported(each, tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_file_says_what_it_is_and_not_where_it_was_made(case: Make, tmp_path: Path) -> None:
    each = case("rope_mixed_deit_small", "64")
    exported(each, tmp_path / "model.onnx")
    model = ir.load(tmp_path / "model.onnx")
    assert model.metadata_props["model"] == each.spec.name
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


@pytest.mark.usefixtures("traced_anew")
def test_nothing_of_a_trace_outlives_it(case: Make) -> None:
    """PyTorch keeps sources and shapes otherwise: a megabyte or two a trace, a gigabyte after a thousand exports."""
    each = case("rope_axial_deit_small", "64")

    def kept() -> tuple[int, int, int]:
        trace_dynamic(each.spec, each.weights, each.factors(each.resolution), each.io())
        gc.collect()
        shapes = sum(type(found).__name__ == "_DispatchCacheKey" for found in gc.get_objects())
        return shapes, len(graph_module._loader.eval_cache), sum(name.startswith("<eval") for name in linecache.cache)

    assert kept() == kept()
