"""What decides a bundle's answers stands twice: in its manifest and in its ONNX graphs. Do both say the same?

A graph's file carries the model, the transform of images, sizes, names, formats and tolerances in `metadata_props`, and
names and shapes of what goes in and out in the graph itself. A manifest that somebody edited, or that came from another
bundle, differs from that. Against whoever edits both stands `check --sha256`: the manifest's digest, which stands for
every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from ropevit_export.bundle.manifest import ArtifactEntry, Manifest, PreprocessEntry, TensorEntry
from ropevit_export.errors import BundleError
from ropevit_export.machine import files

# The key in `metadata_props`, which older exporters did not write.
KEY = "decides"
_LARGEST = 2**31  # what a protobuf message may take, in bytes
# Fields of an artifact that its graph's file carries as they are in the manifest.
_OF_ARTIFACT = {"resolutions", "batch", "precision", "form", "inputs", "outputs", "dynamic"}
Tolerance = Mapping[str, float]


def metadata(artifact: ArtifactEntry, whole: Mapping[str, Any], tolerance: Tolerance) -> dict[str, str]:
    """What a graph's file carries beside model, rope, preprocess and weights. `whole`: the manifest's own fields."""
    facts = {**_of(artifact), **whole, "tolerance": dict(tolerance)}
    return {KEY: json.dumps(facts, sort_keys=True)}


def _of(artifact: ArtifactEntry) -> dict[str, Any]:
    found: dict[str, Any] = artifact.model_dump(mode="json", include=_OF_ARTIFACT)
    return found


def require_same(bundle: Path, listed: Manifest, tolerances: Mapping[str, Tolerance]) -> None:
    """Raise BundleError for the first fact that the manifest has otherwise than a graph. `tolerances`: this version's
    by precision, which bundles must keep to that carry none in their graphs.
    """
    graphs = [each for each in listed.artifacts if each.kind == "onnx"]
    for artifact in graphs:
        path = bundle / artifact.path
        model = _load(path)
        known = {"manifest.json", *(name for name, _ in listed.all_files())}
        _require_own_weights(path, model, known)
        for place, said, held in _pairs(listed, artifact, model, tolerances.get(artifact.precision, {})):
            if said != held:
                raise BundleError(
                    f"{bundle}: the manifest says {place} {_short(said)}, {artifact.path} says {_short(held)}: one of "
                    "them was changed. Export it again."
                )
    _require_like_a_graph(bundle, listed, graphs)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(files.read(path, most=_LARGEST))
    except OSError as error:
        raise BundleError(f"can't read {path}: {error.strerror or error}.") from error
    except Exception as error:  # protobuf's, of many kinds
        raise BundleError(f"{path} is no ONNX file: {error}.") from error


def _require_own_weights(path: Path, model: onnx.ModelProto, known: set[str]) -> None:
    """Weights beside the graph are files of the bundle: a path could lead anywhere."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value not in known:
                raise BundleError(f"{path} takes weights from {entry.value!r}, which its manifest does not list.")


def _pairs(
    listed: Manifest, artifact: ArtifactEntry, model: onnx.ModelProto, tolerance: Tolerance
) -> Iterator[tuple[str, object, object]]:
    """(what, as the manifest says it, as the graph does)."""
    held = {each.key: each.value for each in model.metadata_props}
    weights = listed.weights
    said = {
        "model": listed.model,
        "rope": listed.rope,
        "weights_source": weights.source,
        "weights_sha256": weights.sha256,
        "weights_trained": str(weights.trained).lower(),
    }
    if artifact.dynamic is not None:
        said["max_size"] = "{}x{}".format(*artifact.dynamic.max)
        said["size_multiple"] = str(artifact.dynamic.multiple)
    for name, text in said.items():
        yield name, text, held.get(name)
    yield "preprocess", listed.preprocess, _preprocess(held.get("preprocess", ""))
    yield from _shapes("input", artifact.inputs, model.graph.input)
    yield from _shapes("output", artifact.outputs, model.graph.output)
    if artifact.dynamic is None:
        image = artifact.inputs[0].shape
        sides = image[1:3] if listed.preprocess.layout == "NHWC" else image[2:4]
        yield "resolutions", artifact.resolutions, (tuple(sides),)
    limits = [each.tolerance for each in listed.parity if each.artifact == artifact.path]
    if KEY in held:
        decides = _json(held[KEY])
        whole: dict[str, Any] = listed.model_dump(mode="json", include={"output", "classes", "patch", "prefix"})
        for name, value in {**_of(artifact), **whole}.items():
            yield name, value, decides.get(name)
        tolerance = decides.get("tolerance", {})
    for limit in limits:
        for name, value in limit.items():
            yield f"tolerance {name}", value, tolerance.get(name)


def _preprocess(text: str) -> PreprocessEntry | str:
    try:
        return PreprocessEntry.model_validate_json(text)
    except ValidationError:
        return text


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _shapes(what: str, said: tuple[TensorEntry, ...], held: Any) -> Iterator[tuple[str, object, object]]:
    """Names in their order, formats, and every extent that the graph has as a number or that stands open in it."""
    yield f"{what}s", [each.name for each in said], [each.name for each in held]
    for ours, theirs in zip(said, held, strict=True):
        tensor = theirs.type.tensor_type
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        except KeyError:
            dtype = f"type {tensor.elem_type}"
        yield f"{what} {ours.name} of", ours.dtype, dtype
        extents = [each.dim_value or None for each in tensor.shape.dim]
        fits = len(extents) == len(ours.shape) and all(
            size == extent if isinstance(extent, int) and size is not None else not isinstance(size, int)
            for size, extent in zip(extents, ours.shape, strict=True)
        )
        if not fits:
            yield f"{what} {ours.name} of shape", list(ours.shape), [each or "any" for each in extents]


def _require_like_a_graph(bundle: Path, listed: Manifest, graphs: list[ArtifactEntry]) -> None:
    """An engine is fed and read as the graph that it was built from."""

    def face(artifact: ArtifactEntry) -> object:
        return artifact.precision, artifact.inputs, artifact.outputs

    for artifact in listed.artifacts:
        if artifact.kind != "onnx" and face(artifact) not in [face(each) for each in graphs]:
            raise BundleError(
                f"{bundle}: the manifest says another precision, inputs or outputs of {artifact.path} than of any "
                "graph that it could be built from: it was changed. Export it again."
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
