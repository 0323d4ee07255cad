"""A bundle of a few kilobytes that has a file of every kind: a graph with position inputs, an engine of TensorRT-RTX
with its layer report, golden tensors and position tables. The engine is a header; the graph is no ViT, but it has a
convolution, matrix products and a softmax for `inspect` to find.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import save

from ropevit_export.bundle import facts, manifest, positions
from ropevit_export.machine.files import sha256

MODEL = "rope_mixed_deit_digits"
GRAPH, ENGINE, LAYERS = "model-inputs.onnx", "model-8.engine", "model-8.engine.layers.json"
GOLDEN = "golden-8.safetensors"
SIDE, PATCH, PREFIX, CLASSES, WIDTH = 8, 4, 1, 5, 4
TOLERANCE = {"relative": 1e-4, "cosine": 0.99999999}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5], "interpolation": "bicubic", "crop": 0.875, "crop_mode": "center",
    "layout": "NCHW", "dtype": "float32",
}  # fmt: skip
WEIGHTS = {"source": "random", "revision": "seed 0", "sha256": "0" * 64, "trained": False, "seed": 0, "remark": None}


def make(folder: Path) -> None:
    chance = np.random.default_rng(0)
    tables = {name: chance.standard_normal((1, 2, 1, 2), np.float32) for name in ("cos_x", "sin_x", "cos_y", "sin_y")}
    (folder / positions.NAME).write_bytes(save(tables))
    images = chance.standard_normal((2, 3, SIDE, SIDE), np.float32)
    answers = chance.standard_normal((2, CLASSES), np.float32)
    (folder / GOLDEN).write_bytes(save({"image": images, "expected": answers}))
    (folder / ENGINE).write_bytes(b"vtrt" + struct.pack("<IQQ4BIQ24x", 0, 0, 64, 1, 7, 1, 116, 0, 0b1000))
    (folder / LAYERS).write_text(json.dumps({"layers": _layers()}))
    graph, engine = _artifact("onnx", GRAPH), _artifact("tensorrt-rtx", ENGINE)
    entry = manifest.ArtifactEntry.model_validate(graph)
    whole = {"output": "logits", "classes": CLASSES, "patch": PATCH, "prefix": PREFIX}
    held = {"model": MODEL, "rope": "inputs", "preprocess": json.dumps(PREPROCESS), "max_size": "8x8",
            "size_multiple": "4", "weights_source": "random", "weights_sha256": "0" * 64, "weights_trained": "false",
            **facts.metadata(entry, whole, TOLERANCE)}  # fmt: skip
    (folder / GRAPH).write_bytes(_graph(chance, held).SerializeToString())
    for each in (graph, engine):
        each["sha256"] = sha256(folder / each["path"])
        for file in each["files"]:
            file["sha256"] = sha256(folder / file["path"])
    listed = _manifest([graph, engine], sha256(folder / GOLDEN))
    (folder / manifest.MANIFEST).write_text(json.dumps(listed))


def _artifact(kind: str, path: str) -> dict[str, Any]:
    is_graph = kind == "onnx"
    table = {"dtype": "float32", "shape": [1, "tokens", 1, 2]}
    files = [{"kind": "positions", "path": positions.NAME, "sha256": "0" * 64}]
    if not is_graph:
        files.append({"kind": "layers", "path": LAYERS, "sha256": "0" * 64})
    return {
        "kind": kind,
        "path": path,
        "sha256": "0" * 64,
        "resolutions": [[SIDE, SIDE]],
        "batch": {"min": 1, "opt": 1, "max": 2},
        "precision": "fp32",
        "inputs": [
            {"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", "width"]},
            {"name": "cos", **table},
            {"name": "sin", **table},
        ],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", CLASSES], "pool": "token"}],
        "built_with": "torch 2.14.1, opset 20" if is_graph else "TensorRT-RTX 1.7.1.116",
        "targets": [] if is_graph else ["89"],
        "files": files,
        "dynamic": {"max": [SIDE, SIDE], "multiple": PATCH, "patch": PATCH, "prefix": PREFIX},
        "profiles": [] if is_graph else [[SIDE, SIDE]],
        "census": [{"format": "fp32", "operations": 7, "products": 2, "bytes": 900}],
        "options": {} if is_graph else {"workspace": 1024, "strip_weights": False},
    }


def _manifest(artifacts: list[dict[str, Any]], golden_sha256: str) -> dict[str, Any]:
    metrics = {"samples": 2, "max_abs": 1e-6, "mean_abs": 1e-7, "reference_rms": 1.0, "relative": 1e-6, "cosine": 1.0,
               "top1": 1.0, "not_finite": 0}  # fmt: skip
    return {
        "schema_version": 1,
        "model": MODEL,
        "rope": "inputs",
        "output": "logits",
        "classes": CLASSES,
        "patch": PATCH,
        "prefix": PREFIX,
        "weights": WEIGHTS,
        "preprocess": PREPROCESS,
        "artifacts": artifacts,
        "parity": [
            {"artifact": GRAPH, "resolution": [SIDE, SIDE], "batch": 2, "inputs": "seeded noise and 1 photographs",
             "reference": "PyTorch float32, unfolded", "runtime": "ONNX Runtime", "metrics": metrics,
             "tolerance": TOLERANCE, "passed": True, "histogram": {"lowest": -28, "counts": [3, 7, 2], "exact": 1}}
        ],
        "files": [{"kind": "golden", "path": GOLDEN, "sha256": golden_sha256}],
        "versions": {"ropevit-export": "0.1.0"},
        "rotary": {
            "rule": "mixed, learned from theta 10",
            "coordinates": {"offset": 0.0, "reference": None, "centred": False},
            "grid": [2, 2],
            "pairs": [0, 1],
            "heads": [{"block": 0, "head": 0, "x": [0.5, 0.25], "y": [0.125, -0.5]}],
        },
        "choices": ["one was made"],
        "request": {"model": MODEL, "resolutions": "8", "weights": "random", "rope": "inputs", "precision": "fp32",
                    "io_precision": "fp32"},
    }  # fmt: skip


def _layers() -> list[dict[str, Any]]:
    def tensor(name: str, *shape: int | str) -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": "FP32", "format": "linear"}

    return [
        {"name": "patch_embed_myl0_0", "type": "correlation", "inputs": [tensor("image", "B", 3, SIDE, SIDE)],
         "constants": [tensor("w", WIDTH, 3, PATCH, PATCH)], "outputs": [tensor("x", "B", WIDTH, 2, 2)], "tactic": "",
         "onnx_nodes": ["patch_embed.proj"]},
        {"name": "attention_mha_myl0_1", "type": "gemm", "inputs": [tensor("x", "B", WIDTH)], "constants": [],
         "outputs": [tensor("logits", "B", CLASSES)], "tactic": "0x1",
         "onnx_nodes": ["blocks.0.attention.softmax", "head"]},
    ]  # fmt: skip


def _graph(chance: np.random.Generator, held: dict[str, str]) -> onnx.ModelProto:
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], "patch_embed.proj", strides=[PATCH, PATCH]),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("MatMul", ["m", "square"], ["s"], "blocks.0.attention.scores"),
        helper.make_node("Softmax", ["s"], ["p"], "blocks.0.attention.softmax", axis=-1),
        helper.make_node("Mul", ["cos", "sin"], ["t"], "blocks.0.attention.turn"),
        helper.make_node("ReduceSum", ["t"], ["u"], "sum", keepdims=0),
        helper.make_node("Add", ["p", "u"], ["v"], "add"),
        helper.make_node("Gemm", ["v", "h", "b"], ["logits"], "head"),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "w": chance.standard_normal((WIDTH, 3, PATCH, PATCH), np.float32),
        "axes": np.array([2, 3], np.int64),
        "square": chance.standard_normal((WIDTH, WIDTH), np.float32),
        "h": chance.standard_normal((WIDTH, CLASSES), np.float32),
        "b": np.zeros(CLASSES, np.float32),
    }
    table = (1, "tokens", 1, 2)
    graph = helper.make_graph(
        nodes,
        MODEL,
        [value("image", "batch", 3, "height", "width"), value("cos", *table), value("sin", *table)],
        [value("logits", "batch", CLASSES)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, held)
    return model
