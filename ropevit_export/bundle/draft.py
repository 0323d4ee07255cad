"""A bundle while it is being written: files first, then what the manifest says of them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropevit_export.bundle import facts, golden, manifest, onnx_file, positions, report, resume
from ropevit_export.errors import ParityError
from ropevit_export.machine import files
from ropevit_export.machine.files import sha256

if TYPE_CHECKING:
    from ropevit_export.parity.compare import ParityReport
    from ropevit_export.request import EngineSpec, Request
    from ropevit_export.values import Array, Arrays, Checkpoint, Form, Graph, IoSpec, Plan, Resolution, TensorSpec


# How much of an artifact is in a number format (`manifest.CensusEntry`), by the format's name.
Counts = Mapping[str, Mapping[str, int]]


class Draft:
    """What an export has made so far. Its folder takes the bundle's place only once `close` has written the manifest.

    artifacts  listed in the order in which they are to stand in the manifest
    choices    sentences: what was chosen for the user
    notes      sentences: what was measured and built on the way
    rotary     some of the model's frequencies, where it turns
    """

    def __init__(
        self, folder: Path, request: Request, checkpoint: Checkpoint, classes: int, choices: Sequence[str]
    ) -> None:
        self.folder, self.request, self.checkpoint, self.classes = folder, request, checkpoint, classes
        self.artifacts: list[manifest.ArtifactEntry] = []
        self.parity: list[ParityReport] = []
        self.choices = list(choices)
        self.notes: list[str] = []
        self.rotary: manifest.RotaryEntry | None = None
        self.weights = onnx_file.WeightFile(path=folder / "weights.data")
        self._files: list[manifest.FileEntry] = []
        self._beside_all: list[manifest.FileEntry] = []  # files that every artifact needs

    def path(self, io: IoSpec, suffix: str) -> Path:
        """Of a graph's file, or of an engine's."""
        return self.folder / f"model-{io.rope if io.any_size else io.resolution}{suffix}"

    def write_graph(self, graph: Graph, form: Form, outputs: Sequence[TensorSpec], tolerance: facts.Tolerance) -> Path:
        """The graph as an ONNX file, its weights in the file that all graphs share, or in itself. `tolerance`: by which
        its answers are judged, here and wherever the bundle goes.
        """
        request, io = self.request, graph.io
        path = self.path(io, ".onnx" if form == "portable" else f".{form}.onnx")
        source = {"source": self.checkpoint.source, "sha256": self.checkpoint.sha256}
        source["trained"] = str(self.checkpoint.trained).lower()
        limits = _limits(request, io) if io.any_size else {}
        metadata = onnx_file.metadata(request.model, request.rope, request.preprocess, source)
        whole = {"output": self._output, "classes": self.classes}
        whole |= {"patch": request.model.patch, "prefix": request.model.prefix}
        entry = self._entry(path, "0" * 64, graph, form, outputs, {})  # the hash is not of what it carries
        metadata |= limits | facts.metadata(entry, whole, tolerance)
        onnx_file.write(graph, path, None if request.single_file else self.weights, metadata)
        return path

    def add_graph(
        self, path: Path, graph: Graph, form: Form, outputs: Sequence[TensorSpec], counts: Counts
    ) -> manifest.ArtifactEntry:
        """List a written graph."""
        self.artifacts.append(self._entry(path, sha256(path), graph, form, outputs, counts))
        return self.artifacts[-1]

    def _entry(
        self, path: Path, digest: str, graph: Graph, form: Form, outputs: Sequence[TensorSpec], counts: Counts
    ) -> manifest.ArtifactEntry:
        request, io = self.request, graph.io
        return manifest.ArtifactEntry(
            kind="onnx",
            path=path.name,
            sha256=digest,
            built_with=f"torch {importlib.metadata.version('torch')}, opset {graph.model.opset_imports['']}",
            targets=(),
            resolutions=tuple((size.height, size.width) for size in request.named_sizes(io)),
            dynamic=_dynamic_entry(request, io),
            batch=manifest.BatchEntry(**dataclasses.asdict(io.batch)),
            precision=request.precision,
            form=form,
            inputs=tuple(manifest.TensorEntry(**dataclasses.asdict(tensor)) for tensor in io.inputs),
            outputs=tuple(map(manifest.OutputEntry.of, io.outputs, outputs)),
            census=_census_entries(counts),
        )

    @property
    def _output(self) -> str:
        return self.request.output or self.request.default_output

    def write_layers(self, engine: Path, plan: Plan) -> Path:
        """The builder's own report of an engine, beside it."""
        path = engine.with_name(f"{engine.name}.layers.json")
        content = {"built_with": plan.built_with, "layers": plan.layers}
        files.write(path, (json.dumps(content, indent=1) + "\n").encode())
        return path

    def graph_files(self, onnx: Path) -> list[Path]:
        """What an engine is built from: the ONNX file, and its weights where they lie beside it."""
        return [onnx, *([] if self.request.single_file else [self.weights.path])]

    def add_engine(
        self, source: manifest.ArtifactEntry, spec: EngineSpec, plan: Plan, layers: Path, counts: Counts
    ) -> None:
        """List an engine that was built from the graph `source`."""
        engine, *parts = plan.files
        self.artifacts.append(
            source.model_copy(
                update={
                    "kind": spec.runtime,
                    "path": engine.name,
                    "sha256": sha256(engine),
                    "built_with": plan.built_with,
                    "targets": plan.targets,
                    "options": spec.options.given(),
                    "remark": plan.remark,
                    "files": (*(_file("part", part) for part in parts), _file("layers", layers)),
                    "census": _census_entries(counts),
                    "profiles": tuple((each.resolution.height, each.resolution.width) for each in spec.profiles),
                }
            )
        )

    def add_golden(self, size: Resolution, images: Array, expected: Arrays, host: Arrays) -> None:
        path = self.folder / golden.name(size)
        golden.write(path, images, expected, host)
        self._files.append(_file("golden", path))

    def add_positions(self, parts: Arrays) -> None:
        """What a host fills the position inputs of every artifact from."""
        path = self.folder / positions.NAME
        positions.write(path, parts)
        self._beside_all.append(_file(positions.KIND, path))

    def require_parity(self) -> None:
        """Raise ParityError for the first comparison that is out of tolerance."""
        failed = [each for each in self.parity if not each.passed]
        if failed:
            raise ParityError(failed[0].sentence())

    def keep_report(self, final: Path) -> Path:
        """Write the report beside where the bundle would have been."""
        path = final.with_name(f"{final.name}.out-of-tolerance.md")
        unfinished = manifest.Manifest.model_construct(**self._fields())
        files.write(path, report.render(unfinished).encode())
        return path

    def close(self, page: Callable[[Path, manifest.Manifest], str]) -> manifest.Manifest:
        """Write both reports and the manifest. `page`: makes `report.html` of the folder."""
        fields = self._fields()
        described = manifest.Manifest(**fields)
        texts = {report.REPORT: report.render(described), report.PAGE: page(self.folder, described)}
        for name, text in texts.items():
            files.write(self.folder / name, text.encode())
        reports = [_file("report", self.folder / name) for name in texts]
        written = manifest.Manifest(**fields | {"files": (*self._files, *reports)})
        written.write(self.folder)
        return written

    def _fields(self) -> dict[str, Any]:
        """Of the manifest, as far as they are known."""
        request, checkpoint = self.request, self.checkpoint
        weights = [_file("weights", self.weights.path)] if self.weights.path.is_file() else []
        return {
            "model": request.model.name,
            "rope": request.rope,
            "output": self._output,
            "classes": self.classes,
            "patch": request.model.patch,
            "prefix": request.model.prefix,
            "weights": manifest.WeightsEntry(
                source=checkpoint.source,
                revision=checkpoint.revision,
                sha256=checkpoint.sha256,
                trained=checkpoint.trained,
                seed=checkpoint.seed,
                remark=None if checkpoint.trained else report.UNTRAINED,
            ),
            "preprocess": manifest.PreprocessEntry(**dataclasses.asdict(request.preprocess)),
            "artifacts": tuple(self._with_files(artifact, weights) for artifact in self.artifacts),
            "parity": tuple(parity_entry(each) for each in self.parity),
            "files": tuple(self._files),
            "versions": resume.versions(),
            "rotary": self.rotary,
            "choices": tuple(self.choices),
            "notes": tuple(self.notes),
            "request": resume.noted(request),
        }

    def _with_files(
        self, artifact: manifest.ArtifactEntry, weights: Sequence[manifest.FileEntry]
    ) -> manifest.ArtifactEntry:
        own = weights if artifact.kind == "onnx" else []
        return artifact.model_copy(update={"files": (*own, *artifact.files, *self._beside_all)})


def parity_entry(each: ParityReport) -> manifest.ParityEntry:
    return manifest.ParityEntry(
        artifact=each.artifact,
        output=each.output,
        resolution=(each.resolution.height, each.resolution.width),
        batch=each.batch,
        inputs=each.inputs,
        reference=each.reference,
        runtime=each.runtime,
        metrics=dataclasses.asdict(each.metrics),
        tolerance=dataclasses.asdict(each.tolerance),
        passed=each.passed,
        histogram=None if each.histogram is None else manifest.HistogramEntry(**dataclasses.asdict(each.histogram)),
    )


def _dynamic_entry(request: Request, io: IoSpec) -> manifest.DynamicEntry | None:
    if not io.any_size:
        return None
    limit, model = (io.resolution.height, io.resolution.width), request.model
    return manifest.DynamicEntry(max=limit, multiple=model.multiple, patch=model.patch, prefix=model.prefix)


def _limits(request: Request, io: IoSpec) -> dict[str, str]:
    """What a dynamic graph can't say by its shapes: a host must not feed it other sizes."""
    return {"max_size": f"{io.resolution.height}x{io.resolution.width}", "size_multiple": str(request.model.multiple)}


def _census_entries(counts: Counts) -> tuple[manifest.CensusEntry, ...]:
    return tuple(manifest.CensusEntry(format=name, **row) for name, row in sorted(counts.items()))


def _file(kind: str, path: Path) -> manifest.FileEntry:
    return manifest.FileEntry(kind=kind, path=path.name, sha256=sha256(path))
