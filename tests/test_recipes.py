"""A recipe is what could have been typed, and is refused where that would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ropevit_export import cli
from ropevit_export.cli import export, recipes
from ropevit_export.request import Request
from ropevit_export.values import Dim

TRACKED = sorted((Path(__file__).parents[1] / "engines").glob("*.toml"))


def request_of(*arguments: str) -> Request:
    """What the command line would build."""
    with export.cli.make_context("ropevit-export", list(arguments)) as ctx:
        return export._request(export._one_bundle(ctx))


def written(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


@pytest.mark.parametrize("model", ["rope_mixed_deit_base", "swin_rope_mixed_tiny"])
@pytest.mark.parametrize("path", TRACKED, ids=lambda path: path.stem)
def test_every_recipe_of_ours_is_a_whole_request(path: Path, model: str) -> None:
    made = request_of("--recipe", str(path), "--model", model, "--res", "384")
    assert made.model.short == model
    said = recipes._read(path)
    assert {"engine", "precision", "rope", "batch", "pixels", "output"} <= said.keys()
    assert (made.engines, made.precision) == (tuple(said["engine"]), said["precision"])


def test_there_is_a_recipe_for_every_target() -> None:
    assert {path.stem for path in TRACKED} >= {
        "rtx-portable", "rtx-40", "rtx-50", "datacentre", "jetson-orin", "cpu"
    }  # fmt: skip


def test_a_recipe_is_the_same_as_typing_it(tmp_path: Path) -> None:
    recipe = written(
        tmp_path,
        'model = "deit_small"\nres = [224, "256x352"]\nengine = "none"\nprecision = "fp16"\nbatch = "1:2:4"\n'
        "pixels = true\nseed = 7\n",
    )
    typed = request_of("--model", "deit_small", "--res", "224,256x352", "--engine", "none", "--precision", "fp16",
                       "--batch", "1:2:4", "--pixels", "--seed", "7")  # fmt: skip
    assert request_of("--recipe", recipe) == typed


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = written(tmp_path, "sm = [86, 89]\nbatch = 8\npixels = true\nseed = 3\n")
    made = request_of("--recipe", recipe, "--model", "deit_small", "--res", "224", "--sm", "120", "--seed", "0")
    assert (made.targets, made.seed) == (("120",), 0)
    assert (made.batch, made.pixels) == (Dim.parse("8"), True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('precison = "fp16"', "a recipe has no option 'precison'; closest: precision"),
        ("force = true", "a recipe has no option 'force'; closest: "),
        ('precision = "fp12"', "precision: 'fp12' is not one of"),
        ('engine = ["none", 5]', "engine: '5' is not one of"),
        ('batch = "8:1:2"', "batch: batch 8:1:2: needs 1 <= min <= opt <= max"),
        ("batch = [1, 2]", "batch: [1, 2] is a list, but only one can be given"),
        ("res = 390.5", "res: resolution '390.5' is not a size"),
        ('sm = "new"', "sm: --sm 'new' is not a compute capability"),
        ('pixels = "yes"', "pixels: 'yes' is neither true nor false"),
        ("weights = true", "weights: True is neither a string nor a number"),
        ("[precision]\nof = 1", "precision: {'of': 1} is neither a string nor a number"),
        ("seed = -1", "seed: -1 is not in the range"),
        ("precision = fp16", "is not TOML: "),
        ("\udcff", "is not TOML: "),
    ],
)
def test_a_wrong_recipe_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_bytes(text.encode(errors="surrogateescape"))
    code = cli.run(["--recipe", str(recipe), "--model", "deit_small", "--res", "224", "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {recipe}")
    assert sentence in err


def test_a_wrong_value_is_refused_though_the_command_line_wins(tmp_path: Path) -> None:
    assert cli.run(["--recipe", written(tmp_path, 'precision = "fp12"'), "--model", "deit_small", "--res", "224",
                    "--precision", "fp16"]) == 2  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--recipe", "absent.toml"], 1, "no recipe at absent.toml: No such file"),
        (["--recipe", "a.toml,b.toml"], 2, "2 recipes: give one, or add --matrix"),
        (["--model", "deit_small,deit_base"], 2, "2 models: give one, or add --matrix"),
        (["--jobs", "2"], 2, "--jobs is for --matrix"),
        (["--ray"], 2, "--ray is for --matrix"),
    ],
)
def test_one_bundle_has_one_recipe_and_one_model(
    capsys: pytest.CaptureFixture[str], arguments: list[Any], code: int, sentence: str
) -> None:
    assert cli.run([*arguments, "--res", "224"]) == code
    assert sentence in capsys.readouterr().err
