"""Files that are no checkpoint: each is refused by what it is, and with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError
from tests.tiny import answer, assert_same_answers, ours, state, timms


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        file.read(path)
    return str(raised.value)


def saved_bytes() -> bytes:
    out = io.BytesIO()
    torch.save(state(), out)
    return out.getvalue()


def onnx_bytes() -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    content: bytes = onnx.helper.make_model(graph).SerializeToString()
    return content


def npy_bytes() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: b"", "it is empty"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a git-lfs pointer: run `git"),
        (lambda: b"<html><body>404</body></html>", "it is a web page, probably of a failed download"),
        (lambda: b"\n <!DOCTYPE html><html>", "it is a web page, probably of a failed download"),
        (lambda: b"<!-- x --><html>", "it is a web page, probably of a failed download"),
        (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "it is a web page, probably of a failed"),
        (lambda: b"Entry not found", "probably what a server answered in place of a file: 'Entry not found'"),
        (lambda: b'{"error":"Repository not found"}', "it is text, probably what a server answered"),
        (lambda: "über".encode() * 200, "it is text, probably what a server answered"),
        (lambda: bytes(4096), "it begins with zeros, as a file does whose download has not ended: get it again"),
        (lambda: gzip.compress(saved_bytes()), "it is compressed by gzip: unpack it"),
        (lambda: bz2.compress(b"x"), "it is compressed by bzip2: unpack it"),
        (lambda: lzma.compress(b"x"), "it is compressed by xz: unpack it"),
        (lambda: b"\x28\xb5\x2f\xfd\x00", "it is compressed by zstd: unpack it"),
        (lambda: b"7z\xbc\xaf\x27\x1c\x00", "it is compressed by 7-Zip: unpack it"),
        (lambda: b"Rar!\x1a\x07\x01\x00", "it is compressed by RAR: unpack it"),
        (onnx_bytes, "it looks like an ONNX graph, needs the checkpoint that it was made of"),
        (npy_bytes, "it is a single NumPy array"),
        (lambda: b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
        (lambda: b"GGUF\x03\x00", "it is a GGUF file"),
        (lambda: b"\x1c\x00\x00\x00TFL3", "it is a TFLite file"),
        (lambda: b"\x82\xa6params\x81", "one that PyTorch wrote, or is damaged: it begins with"),
    ],
)  # fmt: skip
def test_a_file_is_told_by_how_it_begins(tmp_path: Path, make: Callable[[], bytes], sentence: str) -> None:
    (tmp_path / "weights.pth").write_bytes(make())
    text = refusal(tmp_path / "weights.pth")
    assert sentence in text
    assert ("damaged" in text) == ("damaged" in sentence)


def zipped(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"best/weights.pth": b"x"}, "it has best/weights.pth in it: unpack it and give that"),
        ({"config.json": b"{}", "model.safetensors": b"x"}, "it has model.safetensors in it: unpack it and give that"),
        ({"metadata.json": b"{}", "model.weights.h5": b"x"}, "it has metadata.json, model.weights.h5 in it, and no"),
        ({}, "it has nothing in it"),
        ({"x/archive_format": b"pt2", "x/data.pkl": b"x"}, "is a program of torch.export"),
    ],
)
def test_an_archive_is_told_by_the_names_in_it(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    assert sentence in refusal(zipped(tmp_path / "x.pth", files))


def test_numpys_archives_are_refused_with_what_makes_a_checkpoint_of_them(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {name: each.numpy() for name, each in state().items()}
    np.savez(tmp_path / "x.npz", **arrays)
    assert "safetensors.numpy.save_file(dict(numpy.load(FILE))" in refusal(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as held:
        safetensors.numpy.save_file(dict(held), tmp_path / "weights.safetensors")
    assert_same_answers(ours(tmp_path / "weights.safetensors"), answer(timms()))


def test_a_file_of_torch_save_that_was_packed_again_is_refused_with_what_unpacks_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved_bytes())) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    path = zipped(tmp_path / "x.pth", content)
    assert 'torch.save(torch.load(FILE, weights_only=True), "weights.pth") makes a file of it' in refusal(path)
    torch.save(torch.load(path, weights_only=True), tmp_path / "weights.pth")
    assert_same_answers(ours(tmp_path / "weights.pth"), answer(timms()))


def test_an_archive_that_would_not_fit_into_memory_is_not_unpacked(tmp_path: Path) -> None:
    """A few megabytes that would be gigabytes."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as part:
        for _ in range(64):
            part.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 17
    assert "was packed again" in refusal(path)


def test_joblibs_files_are_refused_by_its_name(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({name: each.numpy() for name, each in state().items()}, tmp_path / "x.joblib")
    assert "the file is one of joblib, which is not read" in refusal(tmp_path / "x.joblib")


@pytest.mark.parametrize(
    ("inside", "way"),
    [
        ("__0_0.distcp", "dcp_to_torch FOLDER weights.pth"),
        (".metadata", "dcp_to_torch FOLDER weights.pth"),
        ("zero_to_fp32.py", "zero_to_fp32.py . OUT"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py . OUT"),
    ],
)
def test_parts_that_processes_wrote_are_refused_with_what_makes_a_file_of_them(
    tmp_path: Path, inside: str, way: str
) -> None:
    (tmp_path / inside).touch()
    torch.save(state(), tmp_path / "other.pt")
    for path in (tmp_path, tmp_path / inside):
        assert way in refusal(path)


@pytest.mark.filterwarnings("ignore")  # of the process group that there is none
def test_what_is_said_of_distributed_checkpoints_is_right(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"model": state()}, checkpoint_id=str(tmp_path / "parts"))
    assert re.search("torch.distributed.checkpoint.format_utils dcp_to_torch", refusal(tmp_path / "parts"))
    dcp_to_torch_save(tmp_path / "parts", tmp_path / "weights.pth")
    assert_same_answers(ours(tmp_path / "weights.pth"), answer(timms()))


def test_a_pickle_of_no_tensors_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"lr": 0.1}))
    assert "holds no dictionary of tensors" in refusal(tmp_path / "x.pkl")
