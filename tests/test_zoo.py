from __future__ import annotations

import json

import pytest
import timm

from ropevit_export.errors import UsageError
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import DINOV3, LINGBOT, MODELS, ROPE_VIT, find_model
from tests.conftest import GOLDEN

LAYOUTS = json.loads((GOLDEN / "layouts.json").read_text())


def test_the_models_are_the_papers() -> None:
    assert sorted(spec.name for spec in ROPE_VIT) == sorted(LAYOUTS)


@pytest.mark.parametrize("spec", ROPE_VIT, ids=lambda spec: spec.short)
def test_parameters_are_those_of_the_official_files(spec: ModelSpec) -> None:
    theirs = {name: tuple(shape) for name, shape in LAYOUTS[spec.name].items()}
    assert FAMILIES[spec.family].shapes(spec, spec.classes) == theirs


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.short)
def test_every_name_finds_its_model(spec: ModelSpec) -> None:
    names = [spec.name, spec.short, *([f"{spec.timm}.{spec.tag}"] if spec.tag else [])]
    assert [find_model(name) for name in names] == [spec] * len(names)


def test_names_are_one_models_only() -> None:
    """timm's name of an architecture with several weights is the first row's."""
    for names in ([spec.name for spec in MODELS], [spec.short for spec in MODELS]):
        assert len(set(names)) == len(names)
    assert find_model("vit_large_patch16_dinov3").tag == "lvd1689m"


def test_dinov3_and_lingbot_are_all_that_timm_has() -> None:
    theirs = {name for name in timm.list_models() if "dinov3" in name or "lingbot" in name}
    assert {spec.timm for spec in (*DINOV3, *LINGBOT)} == {name for name in theirs if name.startswith("vit_")}


def test_timm_names_are_timms() -> None:
    assert [spec.timm for spec in MODELS if spec.timm and not timm.is_model(spec.timm)] == []


def test_timm_names_may_carry_the_weights_tag() -> None:
    assert find_model("vit_base_patch16_rope_mixed_224.naver_in1k").short == "rope_mixed_deit_base"


def test_an_unknown_model_names_the_three_closest() -> None:
    with pytest.raises(UsageError, match="unknown model 'rope_mixed_diet_base'; closest: ") as error:
        find_model("rope_mixed_diet_base")
    closest = str(error.value).split("closest: ")[1].split(". `")[0].split(", ")
    assert len(closest) == 3
    assert closest[0] == "rope_mixed_deit_base"
