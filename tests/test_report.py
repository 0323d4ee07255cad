"""The page that lies in every bundle: what it says, that nothing in a manifest can break out of it, how it looks."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from timm.data import ImageNetInfo

from ropevit_export import cli
from ropevit_export.bundle import golden, manifest
from ropevit_export.machine.files import sha256
from ropevit_export.models import labels
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import find_model
from ropevit_export.parity import compare
from ropevit_export.report import figures, page
from ropevit_export.request import Request
from ropevit_export.rope.tables import along
from ropevit_export.stages import load, rotary
from ropevit_export.values import Resolution
from ropevit_export.verbs import report
from tests import browser

EVIL = '<script>alert("x")</script>'


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_a_bundle_holds_its_page_and_the_verb_makes_it_again(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = manifest.read(bundle)
    entry = next(each for each in listed.files if each.path == "report.html")
    assert (entry.kind, entry.sha256) == ("report", sha256(bundle / "report.html"))
    out = tmp_path / "again.html"
    assert cli.run(["report", str(bundle), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    assert out.read_bytes() == (bundle / "report.html").read_bytes()


def test_the_page_says_what_the_manifest_does(bundle: Path) -> None:
    listed, text = manifest.read(bundle), (bundle / "report.html").read_text("utf-8")
    assert len(text) < 1e6
    said = [listed.model, listed.weights.sha256, "UNTRAINED", *(each.path for each in listed.artifacts)]
    said += [each.runtime for each in listed.parity] + [f"{each.metrics['relative']:.1e}" for each in listed.parity]
    assert [each for each in said if each not in text] == []
    assert f"All {len(listed.parity)} comparisons are within tolerance" in text
    assert text.count('class="limit"') == len(listed.parity)
    # Nothing is loaded from anywhere, and no script runs.
    assert set(re.findall(r'(?:src|href)="(\w+:|#)', text)) == {"data:", "#"}
    assert "<script" not in text
    assert "url(" not in text


def test_two_bundles_stand_side_by_side(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    text = report.render([bundle, other])
    assert "2 bundles side by side" in text
    assert text.count("<article>") == 2
    assert f"<h1>{other.name}</h1>" in text


def test_names_in_a_manifest_do_not_break_out_of_the_page(bundle: Path) -> None:
    listed = manifest.read(bundle)
    evil = listed.model_copy(
        update={
            "model": EVIL,
            "weights": listed.weights.model_copy(update={"source": EVIL, "remark": EVIL}),
            "choices": (EVIL,),
            "notes": (EVIL,),
            "versions": {EVIL: EVIL},
            "request": {**(listed.request or {}), "model": EVIL, "precision": EVIL},
            "parity": tuple(each.model_copy(update={"runtime": EVIL, "inputs": EVIL}) for each in listed.parity),
            "artifacts": tuple(
                each.model_copy(update={"remark": EVIL, "targets": (EVIL,)}) for each in listed.artifacts
            ),
        }
    )
    text = page.render([page.Subject(bundle, evil, EVIL)])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10


def test_a_failed_comparison_is_on_top(bundle: Path) -> None:
    listed = manifest.read(bundle)
    first = listed.parity[0]
    failed = first.model_copy(update={"passed": False, "metrics": {**first.metrics, "relative": None, "not_finite": 3}})
    text = page.render([page.Subject(bundle, listed.model_copy(update={"parity": (failed, *listed.parity[1:])}), "b")])
    assert f"1 of {len(listed.parity)} comparisons are out of tolerance" in text
    assert "within tolerance.</span>" not in text


def test_a_histogram_counts_every_number_once() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((3, 1000))
    ours = theirs + rng.standard_normal((3, 1000)) * 10.0 ** rng.uniform(-8, -2, (3, 1000))
    ours[0, :7] = theirs[0, :7]
    found = compare.histogram(ours, theirs)
    assert found is not None
    errors = np.abs(ours - theirs) / np.sqrt((theirs**2).mean())
    edges = 2.0 ** np.arange(found.lowest, found.lowest + len(found.counts) + 1)
    assert found.counts == tuple(np.histogram(errors[errors > 0], edges)[0])
    assert (found.exact, sum(found.counts)) == (7, 2993)
    ours[1, 1] = np.nan
    assert compare.histogram(ours, theirs) is None
    assert compare.histogram(theirs, theirs) == compare.Histogram(lowest=0, counts=(), exact=3000)


@pytest.mark.parametrize("name", ["shallow_rope_mixed_deit_small", "shallow_swin_rope_mixed_tiny"])
def test_learned_frequencies_are_drawn_as_they_are_in_the_checkpoint(name: str) -> None:
    """cos(x · f_x + y · f_y) of the paper, from the authors' own tensor."""
    request = Request(model=find_model(name), resolutions=(Resolution.parse("224"),), weights="random")
    _, weights, _ = load(request, lambda stage: None)
    found = rotary(request, weights)
    assert found is not None
    tensors = next(iter(random_checkpoint(request.model, seed=0).dictionaries.values()))
    key = "freqs" if "freqs" in tensors else "layers.0.blocks.0.attn.rope_freqs"
    learned = tensors[key].double().numpy()
    learned = learned[:, 0] if key == "freqs" else learned
    head = next(each for each in found.heads if (each.block, each.head) == (0, 1))
    theirs = learned.reshape(2, request.model.heads[0], -1)[:, 1][:, list(found.pairs)]
    np.testing.assert_allclose([head.x, head.y], theirs, rtol=1e-7)
    rows, columns = found.grid
    drawn = decoded(
        figures.cosines(head.x[1], head.y[1], np.arange(columns, dtype=np.float64), np.arange(rows, dtype=np.float64))
    )
    values = np.asarray(drawn) / 63 * 2 - 1
    expected = np.cos(theirs[0, 1] * np.arange(columns) + theirs[1, 1] * np.arange(rows)[:, None])
    assert np.abs(values - expected).max() < 1 / 63 + 1e-6
    assert np.abs(values - expected.T).max() > 0.1  # x and y swapped would show
    assert found.heads[-1].block is None  # an axial head to compare with: half of its pairs turn with each axis
    assert [bool(each) for each in found.heads[-1].x] == [True] * 3 + [False] * 3


def test_dinov3s_grid_is_centred() -> None:
    request = Request(
        model=find_model("shallow_dinov3_small"), resolutions=(Resolution.parse("64x96"),), weights="random"
    )
    _, weights, _ = load(request, lambda stage: None)
    found = rotary(request, weights)
    assert found is not None
    assert (found.grid, found.coordinates.centred, len(found.heads)) == ((4, 6), True, 1)
    at = along(request.model.rope.coordinates, 6)
    drawn = np.asarray(decoded(figures.cosines(found.heads[0].x[3], 0.0, at, at)))
    np.testing.assert_array_equal(drawn, drawn[:, ::-1])


def test_principal_components_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    features = (rng.standard_normal((96, 12)) * np.arange(12, 0, -1)).reshape(2, 6, 8, 12).astype(np.float32)
    maps = np.concatenate([np.asarray(decoded(each)).reshape(-1, 3) for each in figures.principal(features)])
    theirs = PCA(3).fit_transform(features.reshape(-1, 12))
    for channel in range(3):
        assert abs(np.corrcoef(maps[:, channel], theirs[:, channel])[0, 1]) > 0.95  # colours are cut off at both ends
    assert abs(np.corrcoef(maps[:, 0], theirs[:, 1])[0, 1]) < 0.1


def test_tokens_become_maps_behind_their_prefix(bundle: Path) -> None:
    listed = manifest.read(bundle).model_copy(update={"prefix": 1})
    tokens = np.random.default_rng(0).standard_normal((2, 1 + 6, 5)).astype(np.float32)
    found = page._patches("tokens", tokens, Resolution(height=32, width=48), listed)
    assert found is not None
    np.testing.assert_array_equal(found[1, 1, 2], tokens[1, 1 + 1 * 3 + 2])


def test_the_most_probable_classes_are_named(bundle: Path) -> None:
    theirs = ImageNetInfo()
    names = labels.imagenet()
    assert [theirs.index_to_description(index).startswith(names[index]) for index in range(1000)] == [True] * 1000
    listed = manifest.read(bundle)
    logits = golden.read(bundle / golden.name(Resolution.parse("32")), ["logits"])[1]["logits"]
    trained = listed.weights.model_copy(update={"trained": True, "revision": "0" * 40})
    found = page._top(logits, listed.model_copy(update={"weights": trained}))[1]
    assert found[0][0] == names[int(logits[1].argmax())]
    assert found[0][1] == pytest.approx(float(np.exp(logits[1]).max() / np.exp(logits[1]).sum()), rel=1e-5)
    assert page._top(logits, listed)[1][0][0] == f"class {logits[1].argmax()}"  # random weights name nothing


TIMES: dict[str, Any] = {
    "resolution": [32, 32], "rounds": 4, "machine": {"processor": "x", "cores": 2},
    "timings": [
        {"contender": f"bundle{number}", "batch": 1, "milliseconds": [number, number, number + 1, number + 2],
         "images_per_second": 9.0, "ratio": 1.0, "runtime": "r"} for number in (20, 10)
    ],
}  # fmt: skip


def test_latency_and_blocks_are_shown_where_they_were_measured(bundle: Path, tmp_path: Path) -> None:
    bench, layers = tmp_path / "bench.json", tmp_path / "layers.json"
    bench.write_text(json.dumps(TIMES))
    errors = [{"place": "blocks.0.attn", "error": 1e-7}, {"place": "blocks.1.mlp", "error": 1e-3}]
    graph = {"artifact": "model-32.onnx", "runtime": "r", "errors": errors, "jump": errors[1]}
    layers.write_text(json.dumps({"bundle": f"some/where/{bundle.name}", "graphs": [graph]}))
    text = report.render([bundle], bench=bench, layers=[layers])
    assert text.index("bundle10") < text.index("bundle20")  # the quickest first
    assert "It jumps at blocks.1.mlp" in text
    assert "Block by block" not in report.render([bundle])


@pytest.mark.parametrize(
    ("option", "content", "code", "sentence"),
    [
        ("--bench", "{", 1, "Needs what `bench --out` wrote"),
        ("--bench", '{"graphs": [1]}', 1, "has no timings: needs what `bench --out` wrote"),
        ("--bench", '{"timings": [{}]}', 1, "can't be shown"),
        ("--by-layer", '{"bundle": "another", "graphs": [{}]}', 2, "is of the bundle another, which is none of small"),
    ],
)
def test_what_is_not_of_the_report_is_refused(
    bundle: Path, tmp_path: Path, option: str, content: str, code: int, sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, out = tmp_path / "given.json", tmp_path / "report.html"
    file.write_text(content)
    assert cli.run(["report", str(bundle), option, str(file), "--out", str(out)]) == code
    assert sentence in capsys.readouterr().err
    assert not out.exists()


needs_chromium = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"
)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_asks_nothing_of_a_network(bundle: Path, tmp_path: Path, width: int) -> None:
    sides = tmp_path / "sides.html"
    sides.write_text(report.render([bundle, bundle]))
    for each in (bundle / "report.html", sides):
        light = browser.look(each, width, tmp_path)
        dark = browser.look(each, width, tmp_path, dark=True, picture=tmp_path / "dark.png")
        assert (light.ground, dark.ground) == ("rgb(255, 255, 255)", "rgb(15, 20, 25)")
        for seen in (light, dark):
            assert (seen.width, seen.out, seen.cut, seen.over, seen.requests) == (width, [], [], [], [])
        with Image.open(tmp_path / "dark.png") as picture:
            assert picture.getpixel((2, 2)) == (15, 20, 25)


@needs_chromium
@pytest.mark.slow
def test_the_look_sees_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        '<body><p style="width:600px">wide</p><p style="width:50px;white-space:nowrap;overflow:hidden">cut off text</p>'
        '<p style="position:absolute;top:0;left:0">over</p><img src="http://127.0.0.1:9/x.png"></body>'
    )
    seen = browser.look(wrong, 390, tmp_path)
    assert seen.width > 390
    assert any("wide" in each for each in seen.out)
    assert any("cut off" in each for each in seen.cut)
    assert any("over" in each for each in seen.over)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
