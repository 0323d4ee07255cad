"""Bundles that somebody made to mislead, to crash or to hang us: `check` names the first thing that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ropevit_export import Request, cli, export, runtime
from ropevit_export.bundle import manifest
from ropevit_export.errors import RopevitError
from ropevit_export.machine.files import sha256
from tests.conftest import SMALL
from tests.faults.bundles import ACTS, GRAPH, POSITION_ACTS, cut, graph, pipe, replaced, tolerance
from tests.faults.table import EDITED, IR_ROWS, POSITIONS, Row, rows
from tests.tiny import SIZE, TINY, TINY_APE

PINS = {"--sha256 of another bundle": "0" * 64, "--sha256 that is none": "12ab"}


@pytest.mark.parametrize("row", rows(EDITED))
def test_check_names_what_is_wrong(row: Row, place: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "out"
    if row.fault == "a graph of another bundle":
        replaced(GRAPH, lambda path: shutil.copyfile(bundle / GRAPH, path))(folder)
    else:
        ACTS[row.fault](folder)
    pin = ("--sha256", PINS[row.fault]) if row.fault in PINS else ()
    require_refused(row, cli.run(["check", str(folder), *pin]), *capsys.readouterr())


def require_refused(row: Row, code: int, out: str, err: str) -> None:
    assert (code, out) == (row.code, ""), err
    assert row.says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Please report" not in err


@pytest.fixture(scope="module")
def with_positions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("positions") / "out"
    options = {"weights": "random", "engines": ("none",), "rope": "inputs"}
    export(Request(model=TINY_APE, resolutions=(SIZE,), **options), out=path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("row", rows(POSITIONS))
def test_check_names_what_is_wrong_with_tables(
    row: Row, with_positions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(with_positions, tmp_path / "out")
    POSITION_ACTS[row.fault](folder)
    require_refused(row, cli.run(["check", str(folder)]), *capsys.readouterr())


@pytest.fixture(scope="module")
def with_ir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two, of other weights."""
    made = [tmp_path_factory.mktemp("ir") / "out" for _ in range(2)]
    asked = Request(model=TINY, resolutions=(SIZE,), weights="random", engines=("openvino",))
    for seed, path in enumerate(made):
        export(dataclasses.replace(asked, seed=seed), out=path)
    return made[0], made[1]


@pytest.mark.parametrize("row", rows(IR_ROWS))
def test_check_names_what_is_wrong_with_ir(
    row: Row, with_ir: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = with_ir
    folder = shutil.copytree(good, tmp_path / "out")
    xml, weights = "model-32.xml", "model-32.bin"

    def exchange(*names: str) -> None:
        for name in names:
            replaced(name, functools.partial(shutil.copyfile, other / name))(folder)

    acts: dict[str, Callable[[], object]] = {
        "IR that is cut off": lambda: cut(xml)(folder),
        "IR whose weights are cut off": lambda: cut(weights)(folder),
        "IR that reads behind its weights": lambda: replaced(
            xml, lambda path: path.write_text(re.sub(r'offset="\d+"', f'offset="{2**60}"', path.read_text(), count=1))
        )(folder),
        "IR of another bundle": lambda: exchange(xml, weights),
        "IR with the weights of another bundle": lambda: exchange(weights),
        "IR that is a pipe": lambda: pipe(xml)(folder),
    }
    acts[row.fault]()
    code, (out, err) = cli.run(["check", str(folder)]), capsys.readouterr()
    require_refused(row, code, "" if row.code == 3 else out, err)  # comparisons are printed


def test_a_bundle_is_pinned_by_the_digest_that_its_export_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, "--weights", "random", "--out", "out"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "--sha256: " in line)
    digest = printed.rpartition(" ")[2]
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
