"""Files of strangers besides bundles: pictures, recipes, checkpoints' indexes. Each error names the file."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.cli import terminal
from ropevit_export.errors import BundleError, InputError
from ropevit_export.images import calibration
from ropevit_export.images.files import opened, unreadable
from ropevit_export.inspect import kernels
from tests.faults.conftest import TINY
from tests.faults.table import PICTURES, READERS, Row, rows


def picture(path: Path) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return path.read_bytes()


def bomb(path: Path) -> None:
    """30000 x 30000 pixels of one colour, in some kilobytes; the data is not even read."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def flipped(path: Path) -> None:
    """The bit that makes its height negative and huge."""
    content = bytearray(picture(path))
    content[25] ^= 0x80
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(picture(path)[:200])


PICTURE_ACTS: dict[str, Callable[[Path], object]] = {
    "a PNG of 30000 by 30000 pixels": lambda folder: bomb(folder / "odd.png"),
    "a BMP with a flipped bit in its header": lambda folder: flipped(folder / "odd.bmp"),
    "a JPEG that is cut off": lambda folder: cut(folder / "odd.jpg"),
    "a TIFF of noise": lambda folder: (folder / "odd.tif").write_bytes(b"II*\0" + os.urandom(500)),
    "a picture that is a pipe": lambda folder: os.mkfifo(folder / "odd.png"),
    "a picture without a byte": lambda folder: (folder / "odd.png").touch(),
}


@pytest.mark.parametrize("row", rows(PICTURES))
def test_a_picture_that_can_t_be_read_is_named(row: Row, tmp_path: Path) -> None:
    PICTURE_ACTS[row.fault](tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(InputError) as caught:
        opened(path)
    assert row.says in str(caught.value)
    assert caught.value.exit_code == row.code


def test_a_picture_s_size_is_bounded_where_pil_bounds_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applications with large pictures lift PIL's limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "odd.png"
    bomb(path)
    said = "it has 30000x30000 pixels, more than 178 million"
    assert unreadable([path]) == {path: said}
    with pytest.raises(InputError, match=said):
        opened(path)


@pytest.mark.parametrize("fault", ["a PNG of 30000 by 30000 pixels", "a BMP with a flipped bit in its header"])
def test_calibration_names_the_picture_before_the_build(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calib").mkdir()
    picture(tmp_path / "calib" / "good.png")
    PICTURE_ACTS[fault](tmp_path / "calib")
    code = cli.run([*TINY, "--precision", "int8", "--calib", "calib", "--out", "out"])
    err = capsys.readouterr().err
    assert code == 1
    assert "1 of 2 pictures of --calib calib can't be read, such as calib/odd." in err
    assert err.count("\n") == 1
    assert len(calibration.pictures("calib", skip_unreadable=True)) == 1


def deep_recipe(folder: Path) -> None:
    (folder / "r.toml").write_text("res = " + "[" * 100_000 + "]" * 100_000)


def deep_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[" * 100_000 + "]" * 100_000)


READER_ACTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a recipe of 100,000 lists in one another": (deep_recipe, ("--recipe", "r.toml")),
    "a recipe without an end": (lambda folder: None, ("--recipe", "/dev/zero")),
    "a recipe with engine = []": (
        lambda folder: (folder / "r.toml").write_text("engine = []\n"),
        ("--recipe", "r.toml"),
    ),
    "a workspace of 23 digits": (lambda folder: None, ("--workspace", "1" * 23)),
    "an index of 100,000 lists in one another": (deep_index, ("--weights", "model.safetensors.index.json")),
    "a checkpoint that is a pipe": (lambda folder: os.mkfifo(folder / "w.pth"), ("--weights", "w.pth")),
}


@pytest.mark.parametrize("row", rows(READERS))
def test_a_file_or_number_of_a_stranger_is_one_line(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    act, options = READER_ACTS[row.fault]
    act(tmp_path)
    before = sorted(tmp_path.iterdir())
    timer = threading.Timer(20, os._exit, (1,))  # a reader that waits for ever would hang the whole run
    timer.start()
    try:
        code = cli.run([*TINY[:7], *options, "--out", "out"])
    finally:
        timer.cancel()
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (row.code, 1), err
    assert row.says in err
    assert "Please report" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "{}",
        '{"layers": 3}',
        '{"layers": [3]}',
        '{"layers": [{"name": "a", "type": "b", "inputs": [{}], "constants": [], "outputs": [], "onnx_nodes": []}]}',
        '{"layers": [{"name": "a", "type": "b", "inputs": [{"name": "x", "dtype": "fp16", "shape": [1e99]}],'
        ' "constants": [], "outputs": [], "onnx_nodes": []}]}',
        '{"layers": [{"name": "a", "type": "b", "inputs": [{"name": "x", "dtype": "fp16", "shape": [-4]}],'
        ' "constants": [], "outputs": [], "onnx_nodes": []}]}',
    ],
)
def test_a_layer_report_of_a_stranger_is_a_bundle_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.engine.layers.json"
    path.write_text(content)
    with pytest.raises(BundleError, match="is not a layer report of this package"):
        kernels.read(path)


def test_names_in_files_are_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    name = "[/x][bold]\x1b]0;title\x07\u202egpj"
    table = Table("kernel")
    terminal.add_row(table, name)
    terminal.show(table)
    terminal.say(name, err=True)
    out, err = capsys.readouterr()
    spelled = "[/x][bold]\\x1b]0;title\\x07\\u202egpj"
    assert spelled in out
    assert err == f"{spelled}\n"
    with terminal.progress_bar(1, quiet=False) as progress:
        progress(name)


def test_an_error_spells_out_what_is_in_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", "no\x1b[31mbundle"]) == 1
    assert capsys.readouterr().err == "error: no\\x1b[31mbundle is not a bundle: it has no manifest.json.\n"
