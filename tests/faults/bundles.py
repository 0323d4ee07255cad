"""How each of the table's bundles is made bad, by its row's name: Python and the C++ library get the same ones."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy bfloat16
import numpy as np
import onnx
from safetensors.numpy import load_file, save_file

from ropevit_export.machine.files import sha256

GRAPH = "model-32.onnx"
GOLDEN = "golden-32.safetensors"
POSITIONS = "positions.safetensors"
Listed = dict[str, Any]
Tensors = dict[str, Any]
Act = Callable[[Path], object]


def edited(change: Callable[[Listed], object]) -> Act:
    """The manifest with a change; no file's hash is another then."""

    def act(bundle: Path) -> None:
        path = bundle / "manifest.json"
        listed = json.loads(path.read_text())
        change(listed)
        path.write_text(json.dumps(listed))

    return act


def spelled(before: str, after: str) -> Act:
    """The manifest's text with a change that no writer of JSON would make."""

    def act(bundle: Path) -> None:
        path = bundle / "manifest.json"
        text = json.dumps(json.loads(path.read_text()))
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return act


def rehash(bundle: Path, name: str) -> None:
    """The manifest says of a changed file what it is now."""
    path = bundle / "manifest.json"
    listed = json.loads(path.read_text())
    for artifact in listed["artifacts"]:
        for entry in (artifact, *artifact["files"], *listed["files"]):
            if entry["path"] == name:
                entry["sha256"] = sha256(bundle / name)
    path.write_text(json.dumps(listed))


def replaced(name: str, write: Callable[[Path], object]) -> Act:
    """A file with another content, and its hash in the manifest with it."""

    def act(bundle: Path) -> None:
        write(bundle / name)
        rehash(bundle, name)

    return act


def preprocess(**changes: object) -> Act:
    return edited(lambda listed: listed["preprocess"].update(changes))


def top(**changes: object) -> Act:
    return edited(lambda listed: listed.update(changes))


def artifacts(**changes: object) -> Act:
    return edited(lambda listed: [each.update(changes) for each in listed["artifacts"]])


def tensor(kind: str, **changes: object) -> Act:
    return edited(lambda listed: [each[kind][0].update(changes) for each in listed["artifacts"]])


def dynamic(**changes: object) -> Act:
    return edited(lambda listed: [each["dynamic"].update(changes) for each in listed["artifacts"]])


def parity(**changes: object) -> Act:
    return edited(lambda listed: [each.update(changes) for each in listed["parity"]])


def tolerance(change: Callable[[dict[str, float]], object]) -> Act:
    return edited(lambda listed: [change(each["tolerance"]) for each in listed["parity"]])


def cut(name: str) -> Act:
    return replaced(name, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))


def pipe(name: str) -> Act:
    def act(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return act


def folder(name: str) -> Act:
    def act(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return act


def linked(name: str, target: str) -> Act:
    def act(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).symlink_to(target)

    return act


def graph(change: Callable[[onnx.ModelProto], object]) -> Act:
    def write(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return replaced(GRAPH, write)


def other_facts(model: onnx.ModelProto) -> None:
    entry = next(each for each in model.metadata_props if each.key == "preprocess")
    entry.value = entry.value.replace('"crop": 1.0', '"crop": 0.5').replace('"crop": 0.9', '"crop": 0.5')


def weights_elsewhere(model: onnx.ModelProto) -> None:
    held = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in held.external_data if each.key == "location").value = "../passwd"


def tensors(name: str, change: Callable[[Tensors], object]) -> Act:
    def write(path: Path) -> None:
        held = load_file(path)
        change(held)
        save_file({key: np.ascontiguousarray(each) for key, each in held.items()}, path)

    return replaced(name, write)


def golden(change: Callable[[Tensors], object]) -> Act:
    return tensors(GOLDEN, change)


def positions(change: Callable[[Tensors], object]) -> Act:
    return tensors(POSITIONS, change)


def header(name: str, text: bytes, length: int | None = None) -> Act:
    """A safetensors file that is its header alone."""
    said = struct.pack("<Q", len(text) if length is None else length)
    return replaced(name, lambda path: path.write_bytes(said + text))


def deep(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"choices": [', '"choices": [' + "[" * 100_000 + "]" * 100_000 + ","))


def large(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as stream:
        stream.truncate(100 * 2**20)


def holed(values: Any) -> Any:
    """With one number that is none."""
    values.flat[-1] = np.nan
    return values


NESTED = b"[" * 100_000 + b"]" * 100_000

ACTS: dict[str, Act] = {
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
    "a newer schema": top(schema_version=2),
    "std 0": preprocess(std=[0, 1, 1]),
    "std 1e999": spelled('"std": [', '"std": [1e999, 1, 1], "standard": ['),
    "crop 0": preprocess(crop=0),
    "crop -1": preprocess(crop=-1),
    "crop 1e-9": preprocess(crop=1e-9),
    "mean NaN": preprocess(mean=[float("nan"), 0, 0]),
    "mean of two numbers": preprocess(mean=[0.5, 0.5]),
    "an interpolation of another kind": preprocess(interpolation="lanczos"),
    "a size of 2^40": artifacts(resolutions=[[2**40, 2**40]]),
    "a size of 2^16 by 2^16": artifacts(resolutions=[[2**16, 2**16]]),
    "a size of half a pixel": artifacts(resolutions=[[32.5, 32]]),
    "a size compared at that is not the graph's": parity(resolution=[64, 64]),
    "no artifacts": top(artifacts=[]),
    "no comparisons": top(parity=[]),
    "no sizes": artifacts(resolutions=[]),
    "no inputs": artifacts(inputs=[]),
    "no outputs": artifacts(outputs=[]),
    "an extent of an unknown name": tensor("inputs", shape=["many", 3, 32, 32]),
    "an extent of 2^40": tensor("outputs", shape=[1, 2**40]),
    "nine axes": tensor("outputs", shape=[1] * 9),
    "no axes": tensor("outputs", shape=[]),
    "a tensor without a name": tensor("inputs", name=""),
    "a number format of another kind": tensor("inputs", dtype="float64"),
    "an output of an unknown name": tensor("outputs", name="answer"),
    "a batch out of order": artifacts(batch={"min": 3, "opt": 1, "max": 2}),
    "a batch of 2^40": artifacts(batch={"min": 1, "opt": 1, "max": 2**40}),
    "a prefix of 2^40": top(prefix=2**40),
    "a tolerance without its cosine": tolerance(lambda limits: limits.pop("cosine")),
    "a tolerance of NaN": tolerance(lambda limits: limits.update(relative=float("nan"))),
    "a path that leads out": artifacts(path="../model-32.onnx"),
    "a path with a zero byte": artifacts(path="model-32.onnx\0"),
    "a hash of one digit": artifacts(sha256="0"),
    "100,000 lists in one another": deep,
    "a manifest of 100 MB": large,
    "a manifest that is a pipe": pipe("manifest.json"),
    "a manifest that is a folder": folder("manifest.json"),
    "a graph that is a pipe": pipe(GRAPH),
    "a graph that is a folder": folder(GRAPH),
    "a graph that is a link to a device": linked(GRAPH, "/dev/zero"),
    "weights that are a pipe": pipe("weights.data"),
    "a graph that says other facts": graph(other_facts),
    "a graph with weights from elsewhere": graph(weights_elsewhere),
    "a graph that is cut off": replaced(GRAPH, lambda path: path.write_bytes(path.read_bytes()[:5000])),
    "golden answers that are all zero": golden(lambda held: held["expected"].fill(0)),
    "golden answers that are NaN": golden(lambda held: held["expected"].fill(np.nan)),
    "golden answers in float16": golden(lambda held: held.update(expected=held["expected"].astype(np.float16))),
    "golden files without samples": golden(
        lambda held: held.update(image=held["image"][:0], expected=held["expected"][:0])
    ),
    "golden files without images": golden(lambda held: held.pop("image")),
    "golden files of another size": golden(lambda held: held.update(image=held["image"][..., :16, :16])),
    "golden files of another format": golden(lambda held: held.update(image=held["image"].astype(np.float16))),
    "golden files of another number of answers": golden(lambda held: held.update(expected=held["expected"][:1])),
    "a golden file that is a pipe": pipe(GOLDEN),
    "a golden file that is cut off": replaced(GOLDEN, lambda path: path.write_bytes(path.read_bytes()[:300])),
    "a golden file with more behind it": replaced(GOLDEN, lambda path: path.write_bytes(path.read_bytes() + b"more")),
    "a golden file whose header would have 2^60 bytes": header(GOLDEN, b"{}", 2**60),
    "a golden file of 100,000 lists in one another": header(GOLDEN, NESTED),
    "a golden file with an extent of 2^60": header(
        GOLDEN, b'{"image": {"dtype": "F32", "shape": [1152921504606846976, 16], "data_offsets": [0, 0]}}'
    ),
    "--sha256 of another bundle": lambda bundle: None,
    "--sha256 that is none": lambda bundle: None,
}

POSITION_ACTS: dict[str, Act] = {
    "tables in float16": positions(lambda held: held.update(cos_x=held["cos_x"].astype(np.float16))),
    "tables that hold NaN": positions(lambda held: held.update(cos_x=holed(held["cos_x"]))),
    "an embedding of infinite values": positions(lambda held: held["pos_embed"].fill(np.inf)),
    "tables of fewer columns than the graph takes": positions(
        lambda held: held.update(cos_x=held["cos_x"][:, :1], sin_x=held["sin_x"][:, :1])
    ),
    "tables of other heads along one axis": positions(
        lambda held: held.update(cos_y=held["cos_y"][:, :, :1], sin_y=held["sin_y"][:, :, :1])
    ),
    "tables without one of four": positions(lambda held: held.pop("sin_y")),
    "tables with one more": positions(lambda held: held.update(tan_x=held["cos_x"])),
    "no tables": positions(lambda held: held.clear()),
    "an embedding of two axes": positions(lambda held: held.update(pos_embed=held["pos_embed"][0])),
    "an embedding without rows": positions(lambda held: held.update(pos_embed=held["pos_embed"][:0])),
    "tables that are a pipe": pipe(POSITIONS),
    "tables that are cut off": replaced(POSITIONS, lambda path: path.write_bytes(path.read_bytes()[:300])),
    "a dynamic prefix of 2^40": dynamic(prefix=2**40),
    "a largest size of 2^40": dynamic(max=[2**40, 2**40]),
    "patches of no pixel": dynamic(patch=0),
}
