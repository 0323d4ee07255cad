"""`check --by-layer`: quiet on right graphs of every family and precision, and it names a planted fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.errors import InputError
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import find_model
from ropevit_export.values import Resolution
from ropevit_export.verbs.by_layer import LayerError, by_layer, first_jump
from ropevit_export.verbs.original import reference_of

OPTIONS = ("--weights", "random", "--engine", "none", "-q")
SWIN = ("--res", "64", "--batch", "2")
INPUTS = ("--res", "32x64", "--rope", "inputs", "--batch", "1:2:4", "--precision", "fp16")
PLAIN = ("--res", "64x32", "--output", "tokens")


@pytest.mark.parametrize(
    ("model", "options", "blocks"),
    [
        ("shallow_swin_rope_mixed_tiny", SWIN, 5),
        ("shallow_rope_mixed_ape_deit_small", INPUTS, 2),
        ("rope_mixed_deit_digits", ("--res", "32", "--precision", "bf16", "--pixels", "--batch", "1:2:3"), 4),
        pytest.param("shallow_deit_small", PLAIN, 2, marks=pytest.mark.again),
        pytest.param("swin_rope_mixed_tiny", SWIN, 12, marks=pytest.mark.slow),
        pytest.param("rope_mixed_ape_deit_small", INPUTS, 12, marks=pytest.mark.slow),
        pytest.param("deit_small", PLAIN, 12, marks=pytest.mark.slow),
    ],
)
def test_a_right_graph_has_no_jump(model: str, options: tuple[str, ...], blocks: int, tmp_path: Path) -> None:
    assert cli.run(["--model", model, *OPTIONS, *options, "--out", str(tmp_path / "b")]) == 0
    for each in by_layer(tmp_path / "b"):
        assert each.jump is None, each.sentence()
        # norms are behind their products, but in the form for ONNX Runtime
        values = 2 if "fp16" in options and "onnxruntime" not in each.artifact else 4
        assert len(each.errors) == values * blocks
        assert all(0 < layer.error < 0.1 for layer in each.errors)


def plant(bundle: Path, name: str) -> None:
    """Half of a weight's rows become zero, in the file."""
    model = ir.load(bundle / "model-32.onnx")
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    array = tensor.numpy().copy()
    array[: len(array) // 2] = 0
    content = bytearray((bundle / "weights.data").read_bytes())
    offset = tensor.offset or 0
    del tensor, model
    content[offset : offset + array.nbytes] = array.tobytes()
    (bundle / "weights.data").write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `bundle`, of all twelve blocks."""
    path = tmp_path_factory.mktemp("bundles") / "whole"
    assert cli.run(["--model", "rope_axial_deit_small", "--res", "32", *OPTIONS, "--out", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("made", "weight", "place"),
    [
        ("bundle", "blocks.0.attention.qkv.weight", "blocks.0.attention"),
        ("bundle", "blocks.1.mlp.fc2.weight", "blocks.1.mlp"),
        ("bundle", "embed.weight", "blocks.0.norm1"),
        pytest.param("whole", "blocks.7.attention.qkv.weight", "blocks.7.attention", marks=pytest.mark.slow),
        pytest.param("whole", "blocks.11.mlp.fc2.weight", "blocks.11.mlp", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_named(
    made: str,
    weight: str,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    shutil.copytree(request.getfixturevalue(made), tmp_path / "b")
    plant(tmp_path / "b", weight)
    capsys.readouterr()
    assert cli.run(["check", str(tmp_path / "b"), "--by-layer", "--json"]) == 3
    out, err = capsys.readouterr()
    assert {graph["jump"]["place"] for graph in json.loads(out)["graphs"]} == {place}
    assert f"at {place}" in err
    assert cli.run(["check", str(tmp_path / "b")]) == 1  # the hashes alone say that something is wrong
    assert "weights.data has SHA-256" in capsys.readouterr().err


def test_a_jump_is_out_of_proportion_to_everything_before() -> None:
    def layers(*errors: float) -> list[LayerError]:
        return [LayerError(artifact="", runtime="", place=str(at), error=error) for at, error in enumerate(errors)]

    assert first_jump(layers(1e-7, 3e-7, 9e-7, 3e-6, 2e-5), "fp32") is None  # it grows
    jump = first_jump(layers(1e-7, 3e-7, 1e-4, 1e-1), "fp32")
    assert jump is not None
    assert jump.place == "2"
    broken = first_jump(layers(1e-7, np.nan), "fp32")
    assert broken is not None
    assert first_jump(layers(1e-4), "fp16") is None


def test_other_weights_than_the_bundles_are_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"the bundle was made from weights .* give the file with --weights PATH"):
        by_layer(bundle, weights=str(Path(__file__).parents[1] / "ropevit_export/models/digits/weights.safetensors"))


def test_random_weights_are_drawn_again_from_the_manifests_seed(bundle: Path) -> None:
    """`revision` is text for readers."""
    listed = manifest.read(bundle)
    drawn = random_checkpoint(find_model(listed.model), 3)
    entry = listed.weights.model_copy(update={"seed": 3, "revision": "the third draw", "sha256": drawn.sha256})
    found = reference_of(listed.model_copy(update={"weights": entry}), Resolution.parse("32"))
    theirs = drawn.tensors["patch_embed.proj.weight"].numpy()
    assert np.array_equal(found.model.model.patch_embed.proj.weight.numpy(), theirs)
