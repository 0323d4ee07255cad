"""The verbs, in order: checkpoint → models → rope → trace → passes → backends → parity → bundle."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.bundle import golden, manifest, onnx_file, positions, report, staging
from ropevit_export.errors import BackendError, BundleError, ParityError, UsageError
from ropevit_export.images import calibration
from ropevit_export.images.files import BUILT_IN
from ropevit_export.images.preprocess import in_format, normalise
from ropevit_export.inspect import census, fusion
from ropevit_export.machine.files import sha256
from ropevit_export.parity import compare, samples
from ropevit_export.parity.tolerance import TOLERANCES, Tolerance
from ropevit_export.request import EngineSpec, Request
from ropevit_export.rope import inputs
from ropevit_export.values import (
    DTYPES,
    Checkpoint,
    Form,
    Graph,
    IoSpec,
    Plan,
    Profile,
    Resolution,
    TensorSpec,
    Weights,
)

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder, Runner
    from ropevit_export.passes.quantize.codes import Coding
    from ropevit_export.values import Arrays

log = logging.getLogger("ropevit_export")

DEFAULT_FOLDER = Path("engines")
RANDOM_SUFFIX = "-random"
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A written bundle; `remark` says why something that could have been expected is not in it. `kept`: an earlier run
    had written it.
    """

    path: Path
    manifest: manifest.Manifest
    remark: str | None
    kept: bool = False


def export(
    request: Request,
    *,
    out: Path | None = None,
    force: bool = False,
    cache: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda stage: None,
) -> Bundle:
    """Run every stage for every resolution and write the bundle. `cache`: a folder of engines built before.

    `resume`: a bundle that the same request has made already is kept, and one that another process is making now is
    waited for; without it both are errors.

    Raises RopevitError; a bundle that is out of tolerance is not written, its report is kept beside where it would be.
    """
    if out is not None:
        out = out.expanduser()
        out = out if out.name not in ("", "..") else out.resolve()
        if resume and (kept := existing(request, out, force=force)):
            return kept
    makers, remark = _makers(request)
    if out is not None:
        staging.refuse_existing(out, force=force)
    weights, checkpoint = _load(request, progress)
    final = _final_folder(request, checkpoint, out)
    with staging.claimed(final, waiting=(lambda: progress("waiting for another process")) if resume else None):
        if resume and (kept := existing(request, final, force=force)):
            return kept
        with staging.staged(final, force=force) as folder:
            work = _Export(request, checkpoint, weights.classes, folder, cache, progress)
            for io in request.graphs():
                work.one_graph(weights, io)
                _require_parity(work, final)
            del weights  # builders need the memory
            for maker in makers:
                work.build_engines(maker)
                _require_parity(work, final)
            written = work.finish()
    return Bundle(path=final, manifest=written, remark=remark)


def existing(request: Request, folder: Path, *, force: bool = False) -> Bundle | None:
    """The bundle that this very request has made there, with the same versions and weights; None where there is none.

    Raises BundleError where another request made it; with `force`, which will replace it, it is none. Its files are not
    hashed, which takes a second a GB and is what `check` is for: a bundle appears whole or not at all.
    """
    if not (folder / manifest.MANIFEST).is_file():
        return None
    try:
        found = manifest.read(folder)
        change = _change(request, found)
        if change:
            raise BundleError(f"{folder} was built {change}: add --force to replace it.")
    except BundleError:
        if force:
            return None
        raise
    return Bundle(path=folder, manifest=found, remark=None, kept=True)


def _change(request: Request, found: manifest.Manifest) -> str | None:
    """What is not as it was when a bundle was built."""
    if found.request is None:
        return "by a version that did not note its request"
    then, now = found.request, _noted(request)
    then_in, now_in = found.versions, _versions()
    # Of versions those that both have: the machine that looks after a matrix may lack a builder's runtime.
    pairs = [(name, then.get(name), now.get(name)) for name in sorted(then.keys() | now.keys())]
    pairs += [(name, then_in[name], now_in[name]) for name in sorted((then_in.keys() & now_in.keys()) - {"python"})]
    for name, before, after in pairs:
        if before != after:
            return f"with {name} {before or 'not given'}, which is {after or 'not given'} now"
    path = Path(request.weights).expanduser()
    if path.is_file() and sha256(path) != found.weights.sha256:
        return f"from other weights than {path.name} holds now"
    return None


def _noted(request: Request) -> dict[str, str]:
    """A request as a manifest notes it: calibration images by their content too, as weights are elsewhere in it."""
    measured_on = {} if request.calib is None else {"calib_sha256": calibration.sha256(request.calib)}
    return request.options() | measured_on


def _makers(request: Request) -> tuple[list[Builder], str | None]:
    """Builders that can serve the request, and, where `auto` found none, a sentence why; before minutes of work."""
    from ropevit_export.backends.select import builders

    if request.calib is not None:
        calibration.pictures(request.calib)  # that there are any
    makers, remark = builders(request.engines)
    if request.require_fused_attention and not makers:
        raise BackendError(f"--require-fused-attention is of engines, but {remark}.")
    _check_engines(request, makers)
    return makers, remark


def stage_count(request: Request) -> int:
    """How often `export` calls its `progress`, at most."""
    graphs = request.graphs()
    return 1 + sum(2 + len(request.engines) + 2 * len(request.checked_sizes(io)) for io in graphs)


class _Export:
    """One call's state while its graphs are exported one after the other."""

    def __init__(
        self,
        request: Request,
        checkpoint: Checkpoint,
        classes: int,
        folder: Path,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self.request, self.checkpoint, self.classes = request, checkpoint, classes
        self.folder, self.cache, self.progress = folder, cache, progress
        self.artifacts: list[manifest.ArtifactEntry] = []
        self.parity: list[compare.ParityReport] = []
        self.files: list[manifest.FileEntry] = []
        self.notes: list[str] = []
        self.products: dict[str, Mapping[str, set[str]]] = {}  # what each product of a graph may run in
        self.weight_file = onnx_file.WeightFile(path=folder / "weights.data")
        self.served: list[manifest.FileEntry] = []  # files that every artifact needs beside it
        self.position_parts: Mapping[str, np.ndarray] = {}  # what a host's inputs are filled from

    def one_graph(self, weights: Weights, io: IoSpec) -> None:
        """From weights to an ONNX file that is checked at one size or, a dynamic one, at several."""
        sizes = self.request.checked_sizes(io)
        theirs = {size: self._reference(weights, size) for size in sizes}
        graph = self._graph(weights, dataclasses.replace(io, dtype="float32"))  # until it is converted
        self.position_parts = self._write_positions(weights, io) if io.positions else {}
        host = {size: self._host(size) for size in sizes}
        graphs = self._converted(graph, sizes[0], host[sizes[0]], *theirs[sizes[0]])
        output = self._output(io, theirs[sizes[0]][1])
        paths = [self._write_onnx(made, output, form) for form, made in graphs.items()]
        del graph, graphs
        for size, (feed, expected) in theirs.items():
            given = in_format(feed, io.image.dtype)
            filled = {name: in_format(each, io.dtype) for name, each in host[size].items()}
            for path in paths:
                self._check(self._checkers(path), path.name, io, size, (filled, given, expected))
            golden_path = self.folder / golden.name(size)
            golden.write(golden_path, given, expected)
            self.files.append(_file("golden", golden_path))

    def _host(self, size: Resolution) -> Arrays:
        return inputs.fill(self.position_parts, *self.request.model.grid(size))

    @staticmethod
    def _output(io: IoSpec, expected: np.ndarray) -> TensorSpec:
        extents: list[int | str] = [io.batch_extent, *expected.shape[1:]]
        if io.any_size and io.output == "tokens":
            extents[1] = "tokens"
        return TensorSpec(name=io.output, dtype=io.dtype, shape=tuple(extents))

    def build_engines(self, maker: Builder) -> None:
        """One engine for every portable graph."""
        sources = [each for each in self.artifacts if each.kind == "onnx" and each.form == "portable"]
        for source, io in zip(sources, self.request.graphs(), strict=True):
            self._build(maker, source, io)

    def finish(self) -> manifest.Manifest:
        """Write report and manifest."""
        request, checkpoint = self.request, self.checkpoint
        weights = _file("weights", self.weight_file.path)  # whole only now
        artifacts = [
            each.model_copy(update={"files": (*([weights] if each.kind == "onnx" else []), *each.files, *self.served)})
            for each in self.artifacts
        ]
        path = self.folder / report.REPORT
        path.write_text(report.render(request, checkpoint, self.artifacts, self.parity, self.notes), encoding="utf-8")
        written = manifest.Manifest(
            model=request.model.name,
            rope=request.rope,
            output=request.output,
            classes=self.classes,
            weights=manifest.WeightsEntry(
                source=checkpoint.source,
                revision=checkpoint.revision,
                sha256=checkpoint.sha256,
                trained=checkpoint.trained,
                remark=None if checkpoint.trained else report.UNTRAINED,
            ),
            preprocess=manifest.PreprocessEntry(**dataclasses.asdict(request.preprocess)),
            artifacts=tuple(artifacts),
            parity=tuple(parity_entry(each) for each in self.parity),
            files=(*self.files, _file("report", path)),
            versions=_versions(),
            request=_noted(request),
        )
        written.write(self.folder)
        return written

    def _reference(self, weights: Weights, resolution: Resolution) -> tuple[np.ndarray, np.ndarray]:
        """What a float32 graph is fed, and the unfolded model's answers."""
        from ropevit_export.models import reference
        from ropevit_export.models.resize import resize

        request, preprocess = self.request, self.request.preprocess
        with _stage(f"reference {resolution}", self.progress) as note:
            pixels = samples.pixels(preprocess, resolution, request.seed)
            normalised = normalise(pixels, preprocess)
            sized = resize(request.model, weights, resolution)
            expected = reference.run(reference.build(request.model, sized, resolution, request.output), normalised)
            rms = np.sqrt((expected**2).mean())
            note(f"PyTorch float32 on {len(normalised)} images, rms of {request.output} {rms:.3g}")
        return pixels if request.pixels else normalised, expected

    def _graph(self, weights: Weights, io: IoSpec) -> Graph:
        from ropevit_export import passes
        from ropevit_export.models.resize import resize
        from ropevit_export.rope.tables import block_factors, block_tables
        from ropevit_export.trace.export import trace, trace_dynamic, trace_inputs

        spec, learned = self.request.model, _learned(weights)
        with _stage(f"trace {io.resolution}", self.progress) as note:
            if io.rope == "inputs":
                traced = trace_inputs(spec, weights, io)
            elif io.rope == "dynamic":
                traced = trace_dynamic(spec, weights, block_factors(spec, learned, io.resolution), io)
            else:
                sized = resize(spec, weights, io.resolution)
                traced = trace(spec, sized, block_tables(spec, learned, io.resolution), io)
            note(f"{len(traced.model.graph)} nodes")
        with _stage(f"passes {io.resolution}", self.progress) as note:
            graph = passes.simplify(traced)
            fired = [each.name for each in graph.history if each.fired]
            note(
                f"{len(traced.model.graph)} → {len(graph.model.graph)} nodes, "
                f"{len(fired)} of {len(graph.history)} fired: {', '.join(fired)}"
            )
        return graph

    def _converted(
        self, graph: Graph, size: Resolution, host: Arrays, feed: np.ndarray, expected: np.ndarray
    ) -> dict[Form, Graph]:
        """The graph in the precision asked for, in every form that it is worth having in.

        Before it is rounded it must be the reference's to the last digits: what a lower precision may err by would hide
        a wrong table. The same run says how large values get, which a format must be able to hold.
        """
        from ropevit_export import passes
        from ropevit_export.backends.onnxruntime import OnnxRuntime

        request, io = self.request, graph.io
        if request.precision == "fp32":
            return {"portable": graph}
        with _stage(f"{request.precision} {io.resolution}", self.progress) as note:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                path = Path(folder) / "float32.onnx"
                probed, probes = passes.probed(graph.model)
                metadata = {"model": request.model.name}
                weight_file = onnx_file.WeightFile(path=path.with_suffix(".data"))
                onnx_file.write(dataclasses.replace(graph, model=probed), path, weight_file, metadata)
                runner = OnnxRuntime(path)
                ours, largest = [], np.zeros(len(probes))
                for chosen in _chunks(io.batch.min, len(feed)):
                    feeds = {io.image.name: feed[chosen], **host}
                    answer, *reached = runner.run_all(feeds, [io.output, *(each.output for each in probes)])
                    ours.append(answer)
                    largest = np.maximum(largest, reached)
            found = _report("the float32 graph", size, io, ours, expected, io.batch.min, runner, TOLERANCES["fp32"])
            self.notes.append(f"before rounding: {found.sentence()}")
            if not found.passed:
                self.parity.append(found)  # `export` ends here, and keeps the report
                return {}
            rounded = "fp16" if request.calib else request.precision  # what an 8-bit graph's other operations are in
            passes.refuse_overflow(list(zip(probes, largest, strict=True)), rounded)
            top = int(largest.argmax())
            note(f"largest value {largest[top]:.3g} at {probes[top].place}")
        if request.calib is None:
            return {"portable": passes.convert(graph, request.precision, DTYPES[request.io_precision])}
        with _stage(f"calibration {size}", self.progress) as note:
            measured_on = calibration.feeds(request.calib, io, size, host, request.preprocess)
            coding: Coding = "int8" if request.precision == "int8" else "fp8"
            both = passes.run_quantized(graph, coding, measured_on, DTYPES[request.io_precision])
            self.notes.append(f"8-bit ranges: {len(calibration.pictures(request.calib))} images of {_source(request)}")
            note(self.notes[-1])
        forms: dict[Form, Graph] = {"portable": both.engines}
        return forms | ({"onnxruntime": both.onnxruntime} if both.onnxruntime is not None else {})

    def _write_onnx(self, graph: Graph, output: TensorSpec, form: Form) -> Path:
        request, io = self.request, graph.io
        stem = f"model-{io.rope if io.any_size else io.resolution}"
        path = self.folder / (f"{stem}.onnx" if form == "portable" else f"{stem}.{form}.onnx")
        facts = {"source": self.checkpoint.source, "sha256": self.checkpoint.sha256}
        facts["trained"] = str(self.checkpoint.trained).lower()
        limits = _limits(request, io) if io.any_size else {}
        metadata = onnx_file.metadata(request.model, request.rope, request.preprocess, facts)
        onnx_file.write(graph, path, self.weight_file, metadata | limits)
        counted, self.products[path.name] = census.of_graph(path, request.precision, form)
        counted.require(path.name, request.precision)
        self.artifacts.append(
            manifest.ArtifactEntry(
                kind="onnx",
                path=path.name,
                sha256=sha256(path),
                built_with=f"torch {_version('torch')}, opset {graph.model.opset_imports['']}",
                targets=(),
                resolutions=tuple((size.height, size.width) for size in request.named_sizes(io)),
                dynamic=_dynamic_entry(request, io),
                batch=manifest.BatchEntry(**dataclasses.asdict(io.batch)),
                precision=request.precision,
                form=form,
                inputs=tuple(manifest.TensorEntry(**dataclasses.asdict(each)) for each in io.inputs),
                outputs=(manifest.TensorEntry(**dataclasses.asdict(output)),),
                census=_census_entries(counted),
            )
        )
        return path

    def _write_positions(self, weights: Weights, io: IoSpec) -> dict[str, np.ndarray]:
        """What the host fills the graph's position inputs from."""
        embed = weights.tensors["pos_embed"].numpy() if self.request.model.ape else None
        parts = inputs.parts(self.request.model, _learned(weights), embed, io.resolution)
        path = self.folder / positions.NAME
        positions.write(path, parts)
        self.served.append(_file(positions.KIND, path))
        return parts

    def _checkers(self, path: Path) -> Iterator[Runner]:
        from ropevit_export.backends.select import checkers

        return checkers(path, self.request.precision)

    def _check(
        self,
        runners: Iterable[Runner],
        artifact: str,
        io: IoSpec,
        size: Resolution,
        sample: tuple[Arrays, np.ndarray, np.ndarray],
    ) -> None:
        """`sample`: what the host fills, the images, the reference's answers."""
        tolerance = TOLERANCES[self.request.precision]
        with _stage(f"parity {size}", self.progress) as note:
            measured = [each for runner in runners for each in measure(runner, artifact, io, size, *sample, tolerance)]
            self.parity += measured
            note(max(measured, key=lambda each: each.metrics.relative).sentence())

    def _build(self, maker: Builder, source: manifest.ArtifactEntry, io: IoSpec) -> None:
        from ropevit_export.backends import cache

        spec = _engine_spec(self.request, maker, io)
        with _stage(f"{maker.runtime} {io.resolution}", self.progress) as note:
            onnx = self.folder / source.path
            path = onnx.with_suffix(maker.suffix)
            plan = cache.build(maker, onnx, self.weight_file.path, spec, path, self.cache)
            layers = onnx.with_suffix(f"{maker.suffix}.layers.json")
            layers.write_text(
                json.dumps({"built_with": plan.built_with, "layers": plan.layers}, indent=1) + "\n", "utf-8"
            )
            products = self.products[source.path]
            wanted = {node: {plan.lifts.get(each, each) for each in names} for node, names in products.items()}
            counted = census.of_engine(plan.layers, wanted)
            counted.require(path.name, self.request.precision, plan.lifts)
            if spec.require_fused_attention:
                fusion.require(path.name, onnx, plan.layers)
            size = sum(file.stat().st_size for file in plan.files)
            targets = f", SM {', '.join(plan.targets)}" if plan.targets else ""
            note(f"{len(plan.layers)} kernels, {size / 1e6:.0f} MB{targets}")
        # A plan without weights has no answers until a host puts them back.
        runner = None if spec.options.strip_weights else maker.runner(path, self.request.precision)
        self.notes.append(_engine_note(path.name, plan, ran=runner is not None))
        if runner is not None:
            for named in self.request.named_sizes(io):
                images, expected = golden.read(self.folder / golden.name(named))
                filled = {name: in_format(each, io.dtype) for name, each in self._host(named).items()}
                self._check([runner], path.name, io, named, (filled, images, expected))
        self.artifacts.append(
            source.model_copy(
                update={
                    "kind": maker.runtime,
                    "path": path.name,
                    "sha256": sha256(path),
                    "built_with": plan.built_with,
                    "targets": plan.targets,
                    "options": spec.options.given(),
                    "remark": plan.remark,
                    "files": (*(_file("part", file) for file in plan.files[1:]), _file("layers", layers)),
                    "census": _census_entries(counted),
                    "profiles": tuple((each.resolution.height, each.resolution.width) for each in spec.profiles),
                }
            )
        )


def measure(
    runner: Runner,
    artifact: str,
    io: IoSpec,
    size: Resolution,
    host: Arrays,
    feed: np.ndarray,
    expected: np.ndarray,
    tolerance: Tolerance,
) -> list[compare.ParityReport]:
    """Run an artifact on the samples, once for every batch size that its batch axis makes worth trying.

    `feed`: the images. `host`: what the host fills beside them, the same for every batch.
    """
    reports = []
    for batch in _batches(io, len(feed)):
        ours = [runner.run({io.image.name: feed[chosen], **host}, io.output) for chosen in _chunks(batch, len(feed))]
        reports.append(_report(artifact, size, io, ours, expected, batch, runner, tolerance))
    return reports


def _report(
    artifact: str,
    size: Resolution,
    io: IoSpec,
    ours: list[np.ndarray],
    expected: np.ndarray,
    batch: int,
    runner: Runner,
    tolerance: Tolerance,
) -> compare.ParityReport:
    theirs = [expected[chosen] for chosen in _chunks(len(ours[0]), len(expected))]
    return compare.ParityReport(
        artifact=artifact,
        resolution=size,
        batch=batch,
        inputs=f"seeded noise and {len(expected) - 1} photographs{_rounding(io)}",
        reference="PyTorch float32, unfolded",
        runtime=runner.describe,
        metrics=compare.compare(np.concatenate(ours), np.concatenate(theirs), io.output),
        tolerance=tolerance,
    )


def _rounding(io: IoSpec) -> str:
    """The reference sees the images unrounded: what the graph's input takes from them is part of its error."""
    return f", which the graph takes in {io.image.dtype}" if io.image.dtype in ("float16", "bfloat16") else ""


def _chunks(batch: int, count: int) -> list[np.ndarray]:
    """Which samples each batch holds; the last one begins again where they run out."""
    return [np.arange(start, start + batch) % count for start in range(0, count, batch)]


def _batches(io: IoSpec, count: int) -> list[int]:
    """The static batch; or the smallest of a dynamic one, then one that holds every sample."""
    return sorted(
        {io.batch.min, min(max(io.batch.min, count), io.batch.max)} if not io.batch.is_static else {io.batch.min}
    )


def _load(request: Request, progress: Progress) -> tuple[Weights, Checkpoint]:
    from ropevit_export.checkpoint import source
    from ropevit_export.models.adopt import adopt
    from ropevit_export.models.initial import random_checkpoint

    with _stage("weights", progress) as note:
        checkpoint = source.load(request, lambda: random_checkpoint(request.model, request.seed))
        weights = adopt(request.model, checkpoint)
        at = f" at {checkpoint.revision}" if checkpoint.revision else ""
        note(f"{checkpoint.source}{at}, {weights.classes} classes{'' if checkpoint.trained else ', UNTRAINED'}")
    # The tensors themselves go with the caller's `weights`; two owners would double the peak of memory.
    return weights, dataclasses.replace(checkpoint, tensors={})


def _final_folder(request: Request, checkpoint: Checkpoint, out: Path | None) -> Path:
    """A bundle of random weights says so in its name, unless both the folder and random weights were asked for."""
    final = out or DEFAULT_FOLDER / request.bundle_name
    keeps_name = checkpoint.trained or final.name.endswith(RANDOM_SUFFIX) or (out and request.weights == "random")
    return final if keeps_name else final.with_name(final.name + RANDOM_SUFFIX)


@contextmanager
def _stage(name: str, progress: Progress) -> Iterator[Callable[[str], None]]:
    progress(name)
    start, said = time.perf_counter(), [""]
    yield lambda text: said.__setitem__(0, text)
    log.info("%s: %s, %.1f s", name, said[0], time.perf_counter() - start)


def _require_parity(work: _Export, final: Path) -> None:
    failed = [each for each in work.parity if not each.passed]
    if failed:
        kept = _keep_report(work, final)
        raise ParityError(f"{failed[0].sentence()}; no bundle was written, the report is {kept}.")


def _keep_report(work: _Export, final: Path) -> Path:
    path = final.with_name(f"{final.name}.out-of-tolerance.md")
    text = report.render(work.request, work.checkpoint, work.artifacts, work.parity, work.notes)
    path.write_text(text, encoding="utf-8")
    return path


def _check_engines(request: Request, makers: Sequence[Builder]) -> None:
    """Raise for what no builder has a use for, then for what one can't hold."""
    used = frozenset[str]().union(*(maker.options for maker in makers))
    for name, flag in request.engine_flags.items():
        if makers and name not in used:
            names = ", ".join(maker.runtime for maker in makers)
            raise UsageError(f"{flag} is of no use to the engine asked for, {names}: leave it out.")
    for maker in makers:
        for io in request.graphs():
            maker.check(_engine_spec(request, maker, io))


def _engine_spec(request: Request, maker: Builder, io: IoSpec) -> EngineSpec:
    return EngineSpec(
        runtime=maker.runtime,
        precision=request.precision,
        targets=request.targets if "targets" in maker.options else (),
        profiles=()
        if io.is_static
        else tuple(Profile.of(io, size, request.model.extents(size)) for size in request.named_sizes(io)),
        options=request.engine_options.only(maker.options),
        require_fused_attention=request.require_fused_attention,
    )


def _source(request: Request) -> str:
    """Where calibration images came from, by name: a bundle says nothing about the machine it was made on."""
    return Path(request.calib or "").resolve().name if request.calib != BUILT_IN else "the packaged digits"


def _learned(weights: Weights) -> dict[str, np.ndarray]:
    """Rotary frequencies by official name."""
    return {name: tensor.numpy() for name, tensor in weights.tensors.items() if name.endswith("freqs")}


def _dynamic_entry(request: Request, io: IoSpec) -> manifest.DynamicEntry | None:
    if not io.any_size:
        return None
    limit = (io.resolution.height, io.resolution.width)
    return manifest.DynamicEntry(max=limit, multiple=request.model.multiple)


def _limits(request: Request, io: IoSpec) -> dict[str, str]:
    """What a dynamic graph can't say by its shapes: a host must not feed it other sizes."""
    return {"max_size": f"{io.resolution.height}x{io.resolution.width}", "size_multiple": str(request.model.multiple)}


def _engine_note(name: str, plan: Plan, *, ran: bool) -> str:
    return f"{name}: {len(plan.layers)} kernels, built with {plan.built_with}{'' if ran else ', not run here'}"


def parity_entry(each: compare.ParityReport) -> manifest.ParityEntry:
    return manifest.ParityEntry(
        artifact=each.artifact,
        resolution=(each.resolution.height, each.resolution.width),
        batch=each.batch,
        inputs=each.inputs,
        reference=each.reference,
        runtime=each.runtime,
        metrics=dataclasses.asdict(each.metrics),
        tolerance=dataclasses.asdict(each.tolerance),
        passed=each.passed,
    )


def _census_entries(counted: census.Census) -> tuple[manifest.CensusEntry, ...]:
    return tuple(
        manifest.CensusEntry(format=name, **dataclasses.asdict(count)) for name, count in sorted(counted.counts.items())
    )


def _file(kind: str, path: Path) -> manifest.FileEntry:
    return manifest.FileEntry(kind=kind, path=path.name, sha256=sha256(path))


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _versions() -> dict[str, str]:
    """What the ONNX file's bytes and the numbers in the report depend on."""
    wanted = ("ropevit-export", "torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime",
              "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt-cu13", "openvino", "numpy", "pillow",
              "safetensors")  # fmt: skip
    found = {}
    for name in wanted:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = _version(name)
    return {"python": platform.python_version(), **found}
