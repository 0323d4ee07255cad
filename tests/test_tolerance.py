"""Every tolerance lets right models through and stops wrong ones. The table in `parity/tolerance.py` is from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from ropevit_export.models.spec import RopeSpec
from ropevit_export.parity.compare import Metrics, ParityReport, compare
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.rope.tables import Rotation
from ropevit_export.trace import attention, fold
from ropevit_export.values import Precision
from tests.conftest import Array, Case, frequencies_of, tables_of

Make = Callable[..., Case]
Tables = Sequence[tuple[Array, Array]]


def report(metrics: Metrics, precision: Precision, case: Case) -> ParityReport:
    return ParityReport(
        artifact="model.onnx",
        output="logits",
        resolution=case.resolution,
        batch=1,
        inputs="",
        reference="",
        runtime="",
        metrics=metrics,
        tolerance=TOLERANCES[precision],
    )


def verdicts(case: Case, ours: Array, *precisions: Precision) -> dict[Precision, bool]:
    metrics = compare(ours, case.theirs, "logits")
    return {precision: report(metrics, precision, case).passed for precision in precisions or ("fp32", "fp16")}


def tables(case: Case) -> Tables:
    return case.tables


def swapped(case: Case) -> Tables:
    """x and y exchanged, in every block."""
    spec = case.spec
    return [
        Rotation(freqs=freqs[::-1], coordinates=spec.rope.coordinates).full(spec.window(case.resolution), spec.prefix)
        for freqs in frequencies_of(spec, case.weights)
    ]


# Absolute embeddings and downsizing, so that one size serves all faults; the last is the mildest resize there is.
CASES = [("rope_axial_ape_deit_small", "160"), ("rope_mixed_ape_deit_small", "208"), ("swin_rope_axial_tiny", "224")]


@pytest.mark.parametrize(("model", "size"), CASES)
def test_a_right_model_passes(case: Make, model: str, size: str) -> None:
    each = case(model, size, deep=True)
    assert verdicts(each, each.deploy()) == {"fp32": True, "fp16": True}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_half_precision_weights_pass_as_half_only(case: Make, model: str, size: str) -> None:
    """Rounding every weight to float16 is what fp16 may do and fp32 may not."""
    each = case(model, size, deep=True)
    rounded = {name: tensor.half().float() for name, tensor in each.sized.tensors.items()}
    ours = each.deploy(weights=dataclasses.replace(each.sized, tensors=rounded))
    assert verdicts(each, ours) == {"fp32": False, "fp16": True}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_x_and_y_swapped_is_caught(case: Make, model: str, size: str) -> None:
    each = case(model, size, deep=True)
    assert verdicts(each, each.deploy(tables=swapped(each))) == {"fp32": False, "fp16": False}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_the_wrong_pair_layout_is_caught(case: Make, model: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each = case(model, size, deep=True)

    def unordered(tensors: fold.Tensors, name: str, *, heads: int, reorder: bool, scaled: bool) -> object:
        return fold.projections(tensors, name, heads=heads, reorder=False, scaled=scaled)

    monkeypatch.setattr(attention, "projections", unordered)
    assert verdicts(each, each.deploy()) == {"fp32": False, "fp16": False}


@pytest.mark.parametrize(("model", "size", "theta"), [(*CASES[0], 50.0), (*CASES[2], 100.0)])
def test_the_other_familys_theta_is_caught(case: Make, model: str, size: str, theta: float) -> None:
    each = case(model, size, deep=True)
    wrong = dataclasses.replace(each.spec, rope=RopeSpec(kind="axial", theta=theta))
    ours = each.deploy(tables=tables_of(wrong, each.weights, each.resolution))
    assert verdicts(each, ours) == {"fp32": False, "fp16": False}


@pytest.mark.parametrize(("model", "size"), CASES[:2])
def test_a_turned_class_token_is_caught(case: Make, model: str, size: str) -> None:
    each = case(model, size, deep=True)
    turned = [tuple(np.concatenate([part[2:3], part[1:]]) for part in pair) for pair in tables(each)]
    assert verdicts(each, each.deploy(tables=turned)) == {"fp32": False, "fp16": False}


@pytest.mark.parametrize(("model", "size"), CASES[:2])
def test_an_antialiased_embedding_is_caught(case: Make, model: str, size: str) -> None:
    each = case(model, size, deep=True)
    image = each.weights.tensors["pos_embed"].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    grid = each.spec.grid(each.resolution)
    smooth = torch.nn.functional.interpolate(image, size=grid, mode="bicubic", antialias=True)
    tensors = {**each.sized.tensors, "pos_embed": smooth.permute(0, 2, 3, 1).flatten(1, 2)}
    ours = each.deploy(weights=dataclasses.replace(each.sized, tensors=tensors))
    assert verdicts(each, ours) == {"fp32": False, "fp16": False}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_bfloat16_lets_its_own_rounding_through_and_nothing_gross(case: Make, model: str, size: str) -> None:
    """Structure is judged by fp32's limits before a graph is rounded; this limit is for a conversion gone wrong."""
    each = case(model, size, deep=True)
    rounded = {name: tensor.bfloat16().float() for name, tensor in each.sized.tensors.items()}
    ours = each.deploy(weights=dataclasses.replace(each.sized, tensors=rounded))
    assert verdicts(each, ours, "fp32", "fp16", "bf16") == {"fp32": False, "fp16": False, "bf16": True}
    # fp8 rounds as coarsely as x and y swapped in a Swin's windows err (0.42 of rms)
    judged: tuple[Precision, ...] = ("bf16", "int8") if each.spec.window_of else ("bf16", "int8", "fp8")
    wrong = verdicts(each, each.deploy(tables=swapped(each)), *judged)
    assert wrong == dict.fromkeys(judged, False)
    silent = each.spec.blocks[len(each.spec.blocks) // 2][0] + "mlp.fc2.weight"
    tensors = {**each.sized.tensors, silent: torch.zeros_like(each.sized.tensors[silent])}
    assert verdicts(each, each.deploy(weights=dataclasses.replace(each.sized, tensors=tensors)), "bf16") == {
        "bf16": False
    }


def test_one_nan_fails(case: Make) -> None:
    each = case("rope_axial_ape_deit_small", "160", deep=True)
    ours = each.theirs.copy()
    ours[0, 0] = np.nan
    assert verdicts(each, ours) == {"fp32": False, "fp16": False}


def test_metrics_are_what_they_say() -> None:
    theirs = np.array([[3.0, 4.0], [0.0, 5.0]])
    ours = np.array([[3.0, 4.5], [5.0, 0.0]])
    found = compare(ours, theirs, "logits")
    assert (found.max_abs, found.mean_abs) == (5.0, (0.5 + 5 + 5) / 4)
    assert found.reference_rms == pytest.approx(np.sqrt((9 + 16 + 25) / 4))
    assert found.relative == pytest.approx(5 / np.sqrt(12.5))
    assert found.cosine == 0.0
    assert found.top1 == 0.5


def test_zero_logits_agree_with_zero_logits() -> None:
    found = compare(np.zeros((2, 3)), np.zeros((2, 3)), "logits")
    assert (found.relative, found.cosine) == (0.0, 1.0)


def test_arrays_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.zeros((2, 3)), np.zeros((2, 4)), "logits")
