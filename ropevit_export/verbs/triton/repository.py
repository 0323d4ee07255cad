"""Write the repository: a model for every size and engine, and for each a preprocessing and an ensemble of both.

DIR/models/NAME-384/            takes what the graph takes
DIR/models/NAME-384-prepare/    encoded pictures to that
DIR/models/NAME-384-pictures/   encoded pictures to answers
DIR/kserve.yaml
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ropevit_export.backends.select import forms
from ropevit_export.bundle import golden, manifest
from ropevit_export.errors import BundleError, UsageError
from ropevit_export.machine.files import link
from ropevit_export.models import labels
from ropevit_export.values import Resolution
from ropevit_export.verbs.triton import config
from ropevit_export.verbs.triton.config import Name, Value

Device = Literal["auto", "cpu", "gpu"]
Backend = Literal["own", "python"]
# Triton's backend and what a model's file is called, by an artifact's kind. It has none for TensorRT-RTX.
_BACKENDS = {
    "onnx": ("onnxruntime", "model.onnx"),
    "tensorrt": ("tensorrt", "model.plan"),
    "openvino": ("openvino", "model.xml"),
}
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_PACKAGE = Path(__file__).parents[2]
# What the server prepares pictures with: the very same code, copied under another name.
_PREPARING = "images/preprocess.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """instances: of every model, on each device. delay: microseconds that a request waits for others to make a batch.
    names: of the classes, or none. own: Triton's backends for graphs and engines; python: this package's runtime.
    """

    device: Device = "auto"
    backend: Backend = "own"
    instances: int = 1
    delay: int = 1000
    names: tuple[str, ...] = ()
    storage: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """An artifact as a model of the server. sizes: those named; several where one graph or engine takes them all."""

    name: str
    artifact: manifest.ArtifactEntry
    sizes: tuple[Resolution, ...]


def write(bundle: Path, out: Path, options: Options) -> tuple[list[str], list[str]]:
    """(names of the models, sentences about what is not there). The folder appears whole or not at all.

    Raises RopevitError for a bundle that no server can run, and for a folder that is there already.
    """
    listed = manifest.read(bundle)
    if listed.rope == "inputs":
        raise UsageError(
            f"{bundle} takes its positions as inputs, which a request would carry each time: export with --rope baked "
            "or dynamic."
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists: name another --out.")
    served, remarks = _served(listed, options)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        models = [_write_all(bundle, listed, each, partial / "models", options) for each in served]
        text = _kserve(listed, options)
        (partial / "kserve.yaml").write_text(text, "utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise BundleError(f"can't write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [name for names in models for name in names], remarks


def _served(listed: manifest.Manifest, options: Options) -> tuple[list[Served], list[str]]:
    stem, remarks = re.sub(r"[^A-Za-z0-9_.-]", "_", listed.model), []
    wanted = forms("onnxruntime" if options.device == "cpu" else None, listed.artifacts[0].precision)[0]
    graphs = [each for each in listed.artifacts if each.kind == "onnx"]
    # Of every graph the form for the device, else the portable one; in the order of the manifest.
    best: dict[tuple[manifest.Size, ...], manifest.ArtifactEntry] = {}
    for each in graphs:
        if each.resolutions not in best or each.form == wanted:
            best[each.resolutions] = each
    out = [Served(name=f"{stem}-{_sizes(each)}", artifact=each, sizes=_named(each)) for each in best.values()]
    for engine in (each for each in listed.artifacts if each.kind != "onnx"):
        if options.backend == "python":
            remarks.append(f"{engine.path} is left out: --backend python runs graphs")
        elif engine.kind not in _BACKENDS:
            remarks.append(f"{engine.path} is left out: Triton has no backend for {engine.kind}")
        elif options.device == "cpu" and engine.kind == "tensorrt":
            remarks.append(f"{engine.path} is left out: --device cpu")
        else:
            out.append(Served(name=f"{stem}-{_sizes(engine)}-{engine.kind}", artifact=engine, sizes=_named(engine)))
    if any(each.artifact.batch.min == each.artifact.batch.max for each in out):
        remarks.append("batches are static, so requests are not put together: export with --batch 1:8:32")
    return out, remarks


def _named(artifact: manifest.ArtifactEntry) -> tuple[Resolution, ...]:
    return tuple(Resolution(height=height, width=width) for height, width in artifact.resolutions)


def _sizes(artifact: manifest.ArtifactEntry) -> str:
    return "any" if artifact.dynamic else "_".join(map(str, _named(artifact)))


def _write_all(bundle: Path, listed: manifest.Manifest, served: Served, models: Path, options: Options) -> list[str]:
    """The model itself, and for every size preprocessing and an ensemble."""
    batch = _max_batch(served.artifact)
    _write_model(bundle, listed, served, models / served.name, options)
    names = [served.name]
    for size in served.sizes:
        at = served.name if len(served.sizes) == 1 else f"{served.name}-{size}"
        image = _static(served.artifact.inputs[0], size, listed, batched=bool(batch))
        _write_prepare(listed, size, models / f"{at}-prepare", batch, image, options)
        _write_ensemble(served, models / f"{at}-pictures", f"{at}-prepare", batch, options)
        names += [f"{at}-prepare", f"{at}-pictures"]
    return names


def _write_model(bundle: Path, listed: manifest.Manifest, served: Served, folder: Path, options: Options) -> None:
    artifact, python = served.artifact, options.backend == "python"
    backend, file = ("python", "model.py") if python else _BACKENDS[artifact.kind]
    version = folder / "1"
    version.mkdir(parents=True)
    if python:
        shutil.copyfile(Path(__file__).with_name("runtime_model.py"), version / file)
        (version / "bundle").mkdir()
        for path in bundle.iterdir():
            link(path, version / "bundle" / path.name)
    else:
        # The others keep their names: the graph refers to its weights by theirs.
        link(bundle / artifact.path, version / file)
        for each in artifact.files:
            if each.kind in ("weights", "part"):
                link(bundle / each.path, version / (file.replace(".xml", ".bin") if each.kind == "part" else each.path))
    batch = _max_batch(artifact)
    message: dict[str, Value] = {
        "name": served.name,
        "backend": backend,
        "max_batch_size": batch,
        "input": [_tensor(artifact.inputs[0], batched=bool(batch))],
        "output": [_output(each, bool(batch), options, folder) for each in artifact.outputs],
        "instance_group": [_instances(artifact, options)],
    }
    if batch:
        preferred = sorted({artifact.batch.opt, batch})
        message["dynamic_batching"] = {"preferred_batch_size": preferred, "max_queue_delay_microseconds": options.delay}
    message["model_warmup"] = list(_warm_up(bundle, listed, served, folder))
    (folder / "config.pbtxt").write_text(config.text(message), "utf-8")


def _max_batch(artifact: manifest.ArtifactEntry) -> int:
    """0: the batch is one of the tensors' dimensions, and fixed."""
    return 0 if artifact.batch.min == artifact.batch.max else artifact.batch.max


def _instances(artifact: manifest.ArtifactEntry, options: Options) -> dict[str, Value]:
    device = "gpu" if artifact.kind == "tensorrt" else options.device
    if options.backend == "python" and device == "auto":
        device = "cpu"
    group: dict[str, Value] = {"count": options.instances, "kind": Name(_KINDS[device])}
    if artifact.profiles:  # one instance has them all and takes the one that fits
        group["profile"] = [str(index) for index in range(len(artifact.profiles))]
    return group


def _tensor(entry: manifest.TensorEntry, *, batched: bool) -> dict[str, Value]:
    shape = entry.shape[1:] if batched else entry.shape
    return {
        "name": entry.name,
        "data_type": Name(config.DTYPES[entry.dtype]),
        "dims": [extent if isinstance(extent, int) else -1 for extent in shape],
    }


def _output(entry: manifest.OutputEntry, batched: bool, options: Options, folder: Path) -> dict[str, Value]:
    message = _tensor(entry, batched=batched)
    if entry.name == "logits" and options.names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in options.names), "utf-8")
        message["label_filename"] = "labels.txt"
    return message


def _static(
    entry: manifest.TensorEntry, size: Resolution, listed: manifest.Manifest, *, batched: bool
) -> dict[str, Value]:
    """The image at one size."""
    message = _tensor(entry, batched=batched)
    sides = (size.height, size.width)
    shape = (*sides, 3) if listed.preprocess.layout == "NHWC" else (3, *sides)
    return message | {"dims": list(shape) if batched else [entry.shape[0], *shape]}


def _warm_up(bundle: Path, listed: manifest.Manifest, served: Served, folder: Path) -> Iterator[dict[str, Value]]:
    """Golden pictures: at every size a request of one, and of as many as the engine is made for."""
    artifact, batch = served.artifact, _max_batch(served.artifact)
    for size in served.sizes:
        images, _ = golden.read(bundle / golden.name(size), [])
        count = 1 if batch else artifact.batch.max
        (folder / "warmup").mkdir(exist_ok=True)
        (folder / "warmup" / str(size)).write_bytes(np.resize(images, (count, *images.shape[1:])).tobytes())
        image = _static(artifact.inputs[0], size, listed, batched=bool(batch))
        given = {"data_type": image["data_type"], "dims": image["dims"], "input_data_file": str(size)}
        for many in sorted({artifact.batch.min, artifact.batch.opt}) if batch else (1,):
            yield {
                "name": f"{size}, batch {many if batch else count}",
                "batch_size": many if batch else 0,
                "inputs": {"key": artifact.inputs[0].name, "value": given},
            }


def _write_prepare(
    listed: manifest.Manifest, size: Resolution, folder: Path, batch: int, image: Mapping[str, Value], options: Options
) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("preprocess_model.py"), version / "model.py")
    for name in ("__init__.py", *sorted(_with_imports(_PREPARING))):
        copy = version / "ropevit_preprocess" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = (_PACKAGE / name).read_text("utf-8") if name != "__init__.py" else ""
        copy.write_text(text.replace("from ropevit_export", "from ropevit_preprocess"), "utf-8")
    facts = {"preprocess": listed.preprocess.model_dump(), "size": dataclasses.asdict(size)}
    (version / "preprocess.json").write_text(json.dumps(facts), "utf-8")
    message: dict[str, Value] = {
        "name": folder.name,
        "backend": "python",
        "max_batch_size": batch,
        "input": [{"name": "encoded", "data_type": Name("TYPE_STRING"), "dims": [1]}],
        "output": [{**image, "name": "image"}],
        "instance_group": [{"count": options.instances, "kind": Name("KIND_CPU")}],
    }
    (folder / "config.pbtxt").write_text(config.text(message), "utf-8")


def _with_imports(name: str) -> set[str]:
    """A file of this package and all that it imports from it, those for type checkers left out."""
    found, todo = set(), [name]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        todo += [f"{parent.as_posix()}/__init__.py" for parent in Path(file).parents if parent.name]
        for node in ast.parse((_PACKAGE / file).read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE.name:
                module = "/".join((node.module or "").split(".")[1:])
                named = [f"{module}.py", *(f"{module}/{alias.name}.py".lstrip("/") for alias in node.names)]
                todo += [each for each in named if (_PACKAGE / each).is_file()]
    return found


def _write_ensemble(served: Served, folder: Path, prepare: str, batch: int, options: Options) -> None:
    (folder / "1").mkdir(parents=True)  # empty, but it must be there
    artifact = served.artifact
    names = [each.name for each in artifact.outputs]
    message: dict[str, Value] = {
        "name": folder.name,
        "platform": "ensemble",
        "max_batch_size": batch,
        "input": [{"name": "encoded", "data_type": Name("TYPE_STRING"), "dims": [1]}],
        "output": [_output(each, bool(batch), options, folder) for each in artifact.outputs],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": prepare,
                    "model_version": -1,
                    "input_map": {"key": "encoded", "value": "encoded"},
                    "output_map": {"key": "image", "value": "image"},
                },
                {
                    "model_name": served.name,
                    "model_version": -1,
                    "input_map": {"key": artifact.inputs[0].name, "value": "image"},
                    "output_map": [{"key": name, "value": name} for name in names],
                },
            ]
        },
    }
    (folder / "config.pbtxt").write_text(config.text(message), "utf-8")


def _kserve(listed: manifest.Manifest, options: Options) -> str:
    name = re.sub(r"[^a-z0-9-]", "-", listed.model.lower())[:53].strip("-")
    # A scalar in JSON is one in YAML.
    storage = json.dumps(options.storage or f"pvc://models/{name}")
    limits = "" if options.device == "cpu" else '\n      resources:\n        limits:\n          nvidia.com/gpu: "1"'
    return (
        "# storageUri: where the folder `models` beside this file has been copied to.\n"
        "apiVersion: serving.kserve.io/v1beta1\n"
        "kind: InferenceService\n"
        "metadata:\n"
        f"  name: {json.dumps(name)}\n"
        "spec:\n"
        "  predictor:\n"
        "    model:\n"
        "      modelFormat:\n"
        "        name: triton\n"
        "      protocolVersion: v2\n"
        f"      storageUri: {storage}{limits}\n"
    )


def known_names(bundle: Path, file: Path | None) -> tuple[str, ...]:
    """Of the classes: a file's, or ImageNet's where the weights are published and have so many."""
    listed = manifest.read(bundle)
    if file is not None:
        return labels.from_file(file, listed.classes)
    return labels.known(listed.classes, published=listed.weights.trained and listed.weights.revision is not None)
