"""Bundles that somebody made to mislead, to crash or to hang us: `check` names the first thing that is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from ropevit_export import cli, runtime
from ropevit_export.bundle import manifest
from ropevit_export.errors import RopevitError
from ropevit_export.machine.files import sha256
from tests.conftest import SMALL
from tests.faults.table import EDITED, Row, rows

GRAPH = "model-32.onnx"
GOLDEN = "golden-32.safetensors"
Listed = dict[str, Any]


def edited(change: Callable[[Listed], object]) -> Callable[[Path], object]:
    """The manifest with a change; no file's hash is another then."""

    def act(bundle: Path) -> None:
        path = bundle / "manifest.json"
        listed = json.loads(path.read_text())
        change(listed)
        path.write_text(json.dumps(listed))

    return act


def replaced(name: str, write: Callable[[Path], object]) -> Callable[[Path], object]:
    """A file with another content, and its hash in the manifest with it."""

    def act(bundle: Path) -> None:
        path, listed = bundle / name, bundle / "manifest.json"
        before = sha256(path)
        write(path)
        listed.write_text(listed.read_text().replace(before, sha256(path)))

    return act


def preprocess(**changes: object) -> Callable[[Path], object]:
    return edited(lambda listed: listed["preprocess"].update(changes))


def top(**changes: object) -> Callable[[Path], object]:
    return edited(lambda listed: listed.update(changes))


def artifacts(**changes: object) -> Callable[[Path], object]:
    return edited(lambda listed: [each.update(changes) for each in listed["artifacts"]])


def tensor(kind: str, **changes: object) -> Callable[[Path], object]:
    return edited(lambda listed: [each[kind][0].update(changes) for each in listed["artifacts"]])


def tolerance(change: Callable[[dict[str, float]], object]) -> Callable[[Path], object]:
    return edited(lambda listed: [change(each["tolerance"]) for each in listed["parity"]])


def pipe(name: str) -> Callable[[Path], object]:
    def act(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return act


def graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return replaced(GRAPH, write)


def other_facts(model: onnx.ModelProto) -> None:
    entry = next(each for each in model.metadata_props if each.key == "preprocess")
    entry.value = entry.value.replace('"crop": 1.0', '"crop": 0.5')


def weights_elsewhere(model: onnx.ModelProto) -> None:
    held = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in held.external_data if each.key == "location").value = "../passwd"


def golden(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, path)

    return replaced(GOLDEN, write)


def deep(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"choices": [', '"choices": [' + "[" * 100_000 + "]" * 100_000 + ","))


def large(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as stream:
        stream.truncate(100 * 2**20)


ACTS: dict[str, Callable[[Path], object]] = {
    "mean": preprocess(mean=[0.1, 0.2, 0.3]),
    "crop": preprocess(crop=0.5),
    "interpolation": preprocess(interpolation="bilinear"),
    "layout": preprocess(layout="NHWC"),
    "model": top(model="rope_mixed_deit_base_patch16_LS"),
    "rope": top(rope="dynamic"),
    "weights": edited(lambda listed: listed["weights"].update(source="elsewhere")),
    "precision": artifacts(precision="fp16"),
    "classes": top(classes=11),
    "prefix": top(prefix=5),
    "an input's name": tensor("inputs", name="picture"),
    "an input's shape": tensor("inputs", shape=[1, 3, 64, 64]),
    "an output's format": tensor("outputs", dtype="float16"),
    "how an output is pooled": tensor("outputs", pool="avg"),
    "sizes": artifacts(resolutions=[[64, 64]]),
    "batch": artifacts(batch={"min": 2, "opt": 2, "max": 2}),
    "tolerance": tolerance(lambda limits: limits.update(relative=1e9)),
    "std 0": preprocess(std=[0, 1, 1]),
    "crop 0": preprocess(crop=0),
    "crop -1": preprocess(crop=-1),
    "crop 1e-9": preprocess(crop=1e-9),
    "mean NaN": preprocess(mean=[float("nan"), 0, 0]),
    "a size of 2^40": artifacts(resolutions=[[2**40, 2**40]]),
    "a size of 2^16 by 2^16": artifacts(resolutions=[[2**16, 2**16]]),
    "no sizes": artifacts(resolutions=[]),
    "no inputs": artifacts(inputs=[]),
    "no outputs": artifacts(outputs=[]),
    "an extent of an unknown name": tensor("inputs", shape=["many", 3, 32, 32]),
    "an output of an unknown name": tensor("outputs", name="answer"),
    "a batch out of order": artifacts(batch={"min": 3, "opt": 1, "max": 2}),
    "a tolerance without its cosine": tolerance(lambda limits: limits.pop("cosine")),
    "100,000 lists in one another": deep,
    "a manifest of 100 MB": large,
    "a manifest that is a pipe": pipe("manifest.json"),
    "a graph that is a pipe": pipe(GRAPH),
    "a graph that says other facts": graph(other_facts),
    "a graph with weights from elsewhere": graph(weights_elsewhere),
    "a graph that is cut off": replaced(GRAPH, lambda path: path.write_bytes(path.read_bytes()[:5000])),
    "golden answers that are all zero": golden(lambda tensors: tensors["expected"].fill(0)),
    "golden answers that are NaN": golden(lambda tensors: tensors["expected"].fill(np.nan)),
    "golden files without samples": golden(
        lambda tensors: tensors.update(image=tensors["image"][:0], expected=tensors["expected"][:0])
    ),
    "golden files of another size": golden(lambda tensors: tensors.update(image=tensors["image"][..., :16, :16])),
    "golden files of another number of answers": golden(
        lambda tensors: tensors.update(expected=tensors["expected"][:1])
    ),
    "--sha256 of another bundle": lambda bundle: None,
    "--sha256 that is none": lambda bundle: None,
}
PINS = {"--sha256 of another bundle": "0" * 64, "--sha256 that is none": "12ab"}


@pytest.mark.parametrize("row", rows(EDITED))
def test_check_names_what_is_wrong(row: Row, place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "out"
    if row.fault == "a graph of another bundle":
        replaced(GRAPH, lambda path: shutil.copyfile(bundle / GRAPH, path))(folder)
    else:
        ACTS[row.fault](folder)
    pin = ("--sha256", PINS[row.fault]) if row.fault in PINS else ()
    code = cli.run(["check", str(folder), *pin])
    out, err = capsys.readouterr()
    assert (code, out) == (row.code, ""), err
    assert row.says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Please report" not in err


def test_a_bundle_is_pinned_by_the_digest_that_its_export_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, "--weights", "random", "--out", "out"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "has SHA-256" in line)
    digest = printed.split("SHA-256 ")[1][:64]
    assert digest == sha256(tmp_path / "out" / "manifest.json") == manifest.digest(tmp_path / "out")
    assert cli.run(["check", "out", "--sha256", digest.upper()]) == 0
    assert cli.run(["inspect", "out"]) == 0
    assert digest in capsys.readouterr().out
    with (tmp_path / "out" / "manifest.json").open("a") as stream:
        stream.write(" ")
    assert cli.run(["check", "out"]) == 0
    assert cli.run(["check", "out", "--sha256", digest]) == 1


def test_a_bundle_whose_graphs_carry_no_facts_keeps_to_our_tolerance(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older exporters wrote them."""

    def without(model: onnx.ModelProto) -> None:
        kept = [each for each in model.metadata_props if each.key != "decides"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    graph(without)(place / "out")
    assert cli.run(["check", str(place / "out")]) == 0
    tolerance(lambda limits: limits.update(relative=1e9))(place / "out")
    assert cli.run(["check", str(place / "out")]) == 1
    assert "the manifest says tolerance relative" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["manifest.json", "model-32.onnxruntime.onnx", "weights.data"])
def test_no_reader_waits_for_a_pipe(place: Path, name: str) -> None:
    pipe(name)(place / "out")
    assert cli.run(["inspect", str(place / "out")]) in (0, 1)  # it does not read weights
    with pytest.raises(RopevitError):
        answer(place / "out")


def answer(folder: Path) -> None:
    model = runtime.load(folder)
    model.run(model.prepare(np.zeros((40, 40, 3), np.uint8)))
