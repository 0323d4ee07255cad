"""Files as users have sent them, each made by a small program (tests/cases), through the command line: a bundle that
answers as timm's model with those weights does, or a sentence that a user can act on.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from ropevit_export import cli
from ropevit_export.bundle import manifest
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import find_model
from ropevit_export.runtime import load
from tests.conftest import golden_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CASES = Path(__file__).with_name("cases")
NAME = "vit_small_patch16_rope_mixed_224"
Tensors = dict[str, torch.Tensor]


def made(number: str, *arguments: str) -> None:
    """Run a case's program."""
    (program,) = CASES.glob(f"{number}-*.py")
    before, sys.argv = sys.argv, [str(program), *arguments]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.argv = before


def exported(weights: Path, out: Path, *options: str, model: str = NAME, res: str = "224") -> Path:
    given = ["--model", model, "--res", res, "--weights", str(weights), "--engine", "none", "-q", "--out", str(out)]
    assert cli.run([*given, *options]) == 0
    return out


def assert_answers(bundle: Path, theirs: Any, size: int = 224) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    with torch.inference_mode():
        expected = theirs.eval()(torch.from_numpy(images)).numpy()
    found = load(bundle).run(images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.sqrt((expected**2).mean())


def by_state(state: Tensors, prefix: str = "", **how: Any) -> Any:
    """timm's model with the parameters behind a prefix."""
    model = timm.create_model(NAME, **how)
    mine = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
    model.load_state_dict({name: mine[name] for name in model.state_dict()})
    return model


def read(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def drawn() -> Any:
    """What the programs draw of this package, under timm's names."""
    state = dict(random_checkpoint(find_model("rope_mixed_deit_small"), 0).tensors)
    state["rope.freqs"] = state.pop("freqs").reshape(2, 12, 6, 32)
    return by_state(state)


class Net(torch.nn.Module):
    def __init__(self, state: Tensors) -> None:
        super().__init__()
        self.backbone = by_state(state, "backbone.", num_classes=0)
        self.classifier = torch.nn.Linear(384, 7)
        self.load_state_dict(state)

    def forward(self, x: torch.Tensor) -> Any:
        return self.classifier(self.backbone(x))


BUNDLES: dict[str, tuple[str, tuple[str, ...], Callable[[Path], Any]]] = {
    "03": ("model_best.pth.tar", (), lambda path: by_state(read(path)["state_dict_ema"], num_classes=37)),
    "05": ("x.pth", (), lambda path: drawn()),
    "06": ("x.pth", (), lambda path: drawn()),
    "08": ("x.ckpt", (), lambda path: by_state(read(path)["state_dict"], "model.", num_classes=4)),
    "10": ("x.safetensors", ("--output", "cls"), lambda path: by_state(load_file(path), num_classes=0)),
    "11": ("x.pth", (), lambda path: by_state({n.replace("_orig_mod.", ""): each for n, each in read(path).items()})),
    "16": ("x.pth", ("--output", "cls"), lambda path: by_state(read(path)["teacher"], "backbone.", num_classes=0)),
    "18": ("x.safetensors", (), lambda path: by_state(load_file(path), global_pool="avg")),
    "20": ("x.pth", (), lambda path: Net(read(path))),
}


@pytest.mark.parametrize("number", sorted(BUNDLES))
def test_a_case_becomes_a_bundle_that_answers_as_timm_does(number: str, tmp_path: Path) -> None:
    name, options, theirs = BUNDLES[number]
    made(number, str(tmp_path / name))
    assert_answers(exported(tmp_path / name, tmp_path / "out", *options), theirs(tmp_path / name))


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_07(inside: str, tmp_path: Path) -> None:
    made("07", str(tmp_path / "x"))
    theirs = by_state(load_file(tmp_path / "x" / "model.safetensors"), "timm_model.", num_classes=5)
    assert_answers(exported(tmp_path / "x" / inside, tmp_path / "out"), theirs)


@pytest.mark.parametrize("inside", ["", "model.safetensors.index.json"])
def test_19(inside: str, tmp_path: Path) -> None:
    made("19", str(tmp_path / "x"))
    assert_answers(exported(tmp_path / "x" / inside, tmp_path / "out"), drawn())


def test_13(tmp_path: Path) -> None:
    made("13", str(tmp_path / "x.safetensors"))
    out = exported(tmp_path / "x.safetensors", tmp_path / "out", model="swin_tiny_patch4_window7_224", res="448")
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=448, num_classes=10)
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert_answers(out, theirs, 448)
    assert (
        "windows are 7x7 tokens at 448, the authors' rule gives 14x14: --window chooses" in manifest.read(out).choices
    )


def test_21(tmp_path: Path) -> None:
    made("21", str(tmp_path / "x.safetensors"))
    name = "vit_small_patch16_rope_mixed_ape_224"
    out = exported(tmp_path / "x.safetensors", tmp_path / "out", "--rope", "dynamic", model=name, res="224,384")
    theirs = timm.create_model(name, img_size=384, num_classes=10)
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert_answers(out, theirs, 384)


SENTENCES = {
    "14": "holds a whole pickled module (timm.models.eva.Eva), whose class would have to be imported and run: save",
    "15": "is a TorchScript program, which holds a traced module",
    "17": "wrong shape patch_embed.proj.weight (384, 1, 16, 16), needs (384, 3, 16, 16): it is of a model for gray",
}


@pytest.mark.parametrize("number", sorted(SENTENCES))
def test_a_case_that_cannot_be_read_is_refused_in_a_sentence_of_its_own(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("x.safetensors" if number == "17" else "x.pt")
    made(number, str(path))
    capsys.readouterr()
    assert cli.run(["--model", NAME, "--res", "224", "--weights", str(path), "--engine", "none", "-q"]) == 1
    error = capsys.readouterr().err
    assert SENTENCES[number] in error
    assert error.count("\n") == 1


def test_22_to_24(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By layer with the user's own weights; a bundle of links; the oldest IR version that has the opset."""
    import onnx

    made("22", str(tmp_path / "own.pth"))
    out = exported(tmp_path / "own.pth", tmp_path / "out")
    assert cli.run(["check", str(out), "--by-layer"]) == 1
    assert "own.pth" in capsys.readouterr().err
    assert cli.run(["check", str(out), "--by-layer", "--weights", str(tmp_path / "own.pth")]) == 0
    made("23", str(out), str(tmp_path / "cache"))
    links = tmp_path / "cache" / "snapshots" / "x"
    assert cli.run(["check", str(links)]) == 0
    image, expected = golden_of(next(links.glob("golden-*")))
    for backend in ("onnxruntime", "openvino"):
        np.testing.assert_allclose(load(links, backend).run(image[:1]), expected[:1], atol=1e-3)
    assert onnx.load(out / "model-224.onnx", load_external_data=False).ir_version == 9
