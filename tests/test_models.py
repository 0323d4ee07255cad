"""The reference in PyTorch: it is what everything else is compared with, so it is compared with the authors' logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ropevit_export.models import reference
from ropevit_export.models.adopt import adopt
from ropevit_export.models.resize import resize
from ropevit_export.models.zoo import find_model
from ropevit_export.values import Checkpoint, Resolution, Weights
from tests.conftest import GOLDEN, outputs_of
from tests.golden import fill

LOGITS = np.load(GOLDEN / "logits.npz")


def official_weights(name: str) -> Weights:
    tensors = {key: torch.from_numpy(value) for key, value in fill.state_dict(name).items()}
    return adopt(
        find_model(name),
        Checkpoint(dictionaries={"": tensors}, source="golden", revision=None, sha256="0" * 64, trained=True),
    )


LARGER = "deit_small_patch16_LS@384x384"  # of the others at 384 as much is seen at 256x352
QUICK = [case for case in LOGITS.files if case == LARGER or ("base" not in case and "384x384" not in case)]


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in LOGITS.files]
)
def test_the_reference_is_the_authors(case: str) -> None:
    name, size = case.split("@")
    spec, resolution = find_model(name), Resolution.parse(size)
    model = reference.build(
        spec, resize(spec, official_weights(name), resolution), resolution, outputs_of(spec, "logits")
    )
    ours = reference.run(model, fill.image(resolution.height, resolution.width))["logits"]
    np.testing.assert_allclose(ours, LOGITS[case], atol=1e-5)


def transposed(weights: Weights) -> Weights:
    """Of a RoPE-Swin, with x and y changed over in all that knows them: patches, frequencies and 2x2 merging."""
    tensors = dict(weights.tensors)
    for name, tensor in tensors.items():
        if name == "patch_embed.proj.weight":
            tensors[name] = tensor.transpose(2, 3)
        elif name.endswith("rope_freqs"):
            tensors[name] = tensor.flip(0)
        elif ".downsample." in name:  # of channels from the upper left, lower left, upper right and lower right
            tensors[name] = torch.cat([tensor.chunk(4, dim=-1)[corner] for corner in (0, 2, 1, 3)], dim=-1)
    return Weights(tensors=tensors, classes=weights.classes)


def test_non_square_swin_windows_follow_both_sides() -> None:
    """This project's extension: at 224x448 a window has 7x14 tokens. No one has logits for it, so the transposed model
    has to say the same of the transposed image, and the model as it is something else.
    """
    spec, wide, high = find_model("swin_rope_mixed_tiny"), Resolution.parse("224x448"), Resolution.parse("448x224")
    weights, outputs = official_weights(spec.name), outputs_of(spec, "tokens")
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 448)).astype(np.float32)
    turned = image.transpose(0, 1, 3, 2)
    ours = reference.build(spec, resize(spec, weights, wide), wide, outputs)
    theirs = reference.build(spec, resize(spec, transposed(weights), high), high, outputs)
    unturned = reference.build(spec, resize(spec, weights, high), high, outputs)
    windows = [
        [{block.window_size for block in layer.blocks} for layer in each.model.layers] for each in (ours, theirs)
    ]
    assert windows == [[{(7, 14)}] * 4, [{(14, 7)}] * 4]
    grid = reference.run(ours, image)["tokens"].reshape(7, 14, 768)
    np.testing.assert_allclose(
        reference.run(theirs, turned)["tokens"].reshape(14, 7, 768).transpose(1, 0, 2), grid, atol=1e-4
    )
    other = reference.run(unturned, turned)["tokens"].reshape(14, 7, 768).transpose(1, 0, 2)
    assert np.abs(other - grid).max() > 0.1 * np.abs(grid).max()


def test_a_resized_embedding_is_not_antialiased() -> None:
    spec, resolution = find_model("deit_small"), Resolution(height=112, width=160)
    embed = torch.randn(1, 196, 384, generator=torch.Generator().manual_seed(0))
    weights = Weights(tensors={"pos_embed": embed}, classes=1000, embed_grid=(14, 14))
    ours = resize(spec, weights, resolution).tensors["pos_embed"]
    image = embed.reshape(1, 14, 14, 384).permute(0, 3, 1, 2)
    theirs, antialiased = (
        torch.nn.functional.interpolate(image, size=(7, 10), mode="bicubic", antialias=antialias)
        .permute(0, 2, 3, 1)
        .flatten(1, 2)
        for antialias in (False, True)
    )
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, antialiased, atol=1e-2)
