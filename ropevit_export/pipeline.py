"""One export, in order: checkpoint → models → rope → trace → passes → backends → parity → bundle."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.bundle import golden, staging
from ropevit_export.bundle.draft import Draft
from ropevit_export.bundle.manifest import ArtifactEntry, Bundle
from ropevit_export.bundle.resume import existing
from ropevit_export.errors import BackendError, CheckpointError, ParityError, UsageError
from ropevit_export.images import calibration
from ropevit_export.images.files import BUILT_IN
from ropevit_export.images.preprocess import in_format, normalise
from ropevit_export.inspect import census, fusion
from ropevit_export.models.spec import ModelSpec
from ropevit_export.parity import measure, samples
from ropevit_export.parity.measure import Sample
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.request import EngineSpec, Request
from ropevit_export.rope import inputs
from ropevit_export.values import (
    DTYPES,
    Checkpoint,
    Form,
    Graph,
    IoSpec,
    Output,
    Precision,
    Profile,
    Resolution,
    TensorSpec,
    Weights,
)

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder
    from ropevit_export.passes.quantize.codes import Coding
    from ropevit_export.values import Array, Arrays

log = logging.getLogger("ropevit_export")

DEFAULT_FOLDER = Path("engines")
RANDOM_SUFFIX = "-random"
LOGITS = "logits"
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A graph of the bundle that engines are built from.

    products  what each of its products may run in, by the node's name
    hosts     what the host fills beside the images, by size
    """

    io: IoSpec
    artifact: ArtifactEntry
    products: Mapping[str, set[str]]
    hosts: Mapping[Resolution, Arrays]


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
            draft = Draft(folder, request, checkpoint, weights.classes)
            with _report_kept(draft, final):
                sources = [_add_graph(draft, weights, io, progress) for io in request.graphs()]
                del weights  # builders need the memory
                for maker in makers:
                    for source in sources:
                        _add_engine(draft, source, maker, cache, progress)
                    draft.require_parity()
                written = draft.close()
    return Bundle(path=final, manifest=written, remark=remark)


def stage_count(request: Request) -> int:
    """How often `export` calls its `progress`, at most."""
    graphs = request.graphs()
    return 1 + sum(2 + len(request.engines) + 2 * len(request.checked_sizes(io)) for io in graphs)


def _makers(request: Request) -> tuple[list[Builder], str | None]:
    """Builders that can serve the request, and, where `auto` found none, a sentence why; before minutes of work."""
    from ropevit_export.backends.select import builders

    if request.calib is not None:
        calibration.pictures(request.calib)  # that there are any
    makers, remark = builders(request.engines)
    if request.require_fused_attention and not makers:
        raise BackendError(f"--require-fused-attention needs an engine, but {remark}.")
    used = frozenset[str]().union(*(maker.options for maker in makers))
    for name, flag in request.engine_flags.items():
        if makers and name not in used:
            names = ", ".join(maker.runtime for maker in makers)
            raise UsageError(f"{flag} is of no use to the engine asked for, {names}: leave it out.")
    for maker in makers:
        for io in request.graphs():
            maker.check(_engine_spec(request, maker, io))
    return makers, remark


def _engine_spec(request: Request, maker: Builder, io: IoSpec) -> EngineSpec:
    sizes = () if io.is_static else request.named_sizes(io)
    return EngineSpec(
        runtime=maker.runtime,
        precision=request.precision,
        targets=request.targets if "targets" in maker.options else (),
        profiles=tuple(Profile.of(io, size, request.model.extents(size)) for size in sizes),
        options=request.engine_options.only(maker.options),
        require_fused_attention=request.require_fused_attention,
    )


def _load(request: Request, progress: Progress) -> tuple[Weights, Checkpoint]:
    from ropevit_export.checkpoint import source
    from ropevit_export.models.adopt import adopt
    from ropevit_export.models.initial import random_checkpoint

    with _stage("weights", progress) as note:
        checkpoint = source.load(request, lambda: random_checkpoint(request.model, request.seed))
        weights = adopt(request.model, checkpoint)
        if not weights.classes and LOGITS in [output.name for output in request.outputs]:
            raise CheckpointError(
                f"the weights ({checkpoint.source}) have no head, which --output logits needs: take pooled, cls, tokens or "
                "features."
            )
        at = f" at {checkpoint.revision}" if checkpoint.revision else ""
        head = f"{weights.classes} classes" if weights.classes else "no head"
        note(f"{checkpoint.source}{at}, {head}{'' if checkpoint.trained else ', UNTRAINED'}")
    # The tensors themselves go with the caller's `weights`; two owners would double the peak of memory.
    return weights, dataclasses.replace(checkpoint, tensors={})


def _final_folder(request: Request, checkpoint: Checkpoint, out: Path | None) -> Path:
    """A bundle of random weights says so in its name, unless both the folder and random weights were asked for."""
    final = out or DEFAULT_FOLDER / request.bundle_name
    keeps_name = checkpoint.trained or final.name.endswith(RANDOM_SUFFIX) or (out and request.weights == "random")
    return final if keeps_name else final.with_name(final.name + RANDOM_SUFFIX)


def _add_graph(draft: Draft, weights: Weights, io: IoSpec, progress: Progress) -> Source:
    """From weights to an ONNX file that is checked at one size or, a dynamic one, at several."""
    request = draft.request
    references = {size: _reference(request, weights, size, progress) for size in request.checked_sizes(io)}
    graph = _traced(request, weights, dataclasses.replace(io, dtype="float32"), progress)  # until it is converted
    parts = _position_parts(request, weights, io)
    if parts:
        draft.add_positions(parts)
    samples_by_size = {
        size: Sample(resolution=size, images=images, host=_host(request, parts, size), expected=expected)
        for size, (images, expected) in references.items()
    }
    first = next(iter(samples_by_size.values()))
    listed = [_output(io, output, first.expected[output.name]) for output in io.outputs]
    sources = [
        _write_graph(draft, converted, listed, form)
        for form, converted in _in_precision(draft, graph, first, progress).items()
    ]
    del graph
    for size, exact in samples_by_size.items():
        sample = _as_fed(exact, io)
        for artifact, _ in sources:
            _check_graph(draft, artifact, io, sample, progress)
        draft.add_golden(size, sample.images, sample.expected)
    draft.require_parity()
    artifact, products = sources[0]
    hosts = {size: _as_fed(sample, io).host for size, sample in samples_by_size.items()}
    return Source(io=io, artifact=artifact, products=products, hosts=hosts)


def _reference(request: Request, weights: Weights, size: Resolution, progress: Progress) -> tuple[Array, Arrays]:
    """What a float32 graph is fed, and the unfolded model's answers."""
    from ropevit_export.models import reference
    from ropevit_export.models.resize import resize

    preprocess = request.preprocess
    with _stage(f"reference {size}", progress) as note:
        pixels = samples.pixels(preprocess, size, request.seed)
        normalised = normalise(pixels, preprocess)
        sized = resize(request.model, weights, size)
        expected = reference.run(reference.build(request.model, sized, size, request.outputs), normalised)
        rms = ", ".join(f"{name} {np.sqrt((answer**2).mean()):.3g}" for name, answer in expected.items())
        note(f"PyTorch float32 on {len(normalised)} images, rms of {rms}")
    return pixels if request.pixels else normalised, expected


def _traced(request: Request, weights: Weights, io: IoSpec, progress: Progress) -> Graph:
    from ropevit_export import passes
    from ropevit_export.models.resize import resize
    from ropevit_export.rope.tables import block_factors, block_tables
    from ropevit_export.trace.export import trace, trace_dynamic, trace_inputs

    spec = request.model
    freqs, coordinates = _frequencies(spec, weights), spec.rope.coordinates
    with _stage(f"trace {io.resolution}", progress) as note:
        if io.rope == "inputs":
            traced = trace_inputs(spec, weights, io)
        elif io.rope == "dynamic":
            factors = block_factors(freqs, coordinates, spec.grid(io.resolution))
            traced = trace_dynamic(spec, weights, factors, io)
        else:
            tables = block_tables(freqs, coordinates, spec.window(io.resolution), spec.prefix)
            traced = trace(spec, resize(spec, weights, io.resolution), tables, io)
        note(f"{len(traced.model.graph)} nodes")
    with _stage(f"passes {io.resolution}", progress) as note:
        graph = passes.simplify(traced)
        fired = [record.name for record in graph.history if record.fired]
        note(
            f"{len(traced.model.graph)} → {len(graph.model.graph)} nodes, "
            f"{len(fired)} of {len(graph.history)} fired: {', '.join(fired)}"
        )
    return graph


def _position_parts(request: Request, weights: Weights, io: IoSpec) -> Arrays:
    """What the host fills the graph's position inputs from, if it has any."""
    if not io.positions:
        return {}
    from ropevit_export.rope.tables import block_factors

    spec = request.model
    embed = weights.tensors["pos_embed"].numpy() if spec.ape else None
    coordinates = spec.rope.coordinates
    factors = block_factors(_frequencies(spec, weights), coordinates, spec.grid(io.resolution))
    return inputs.parts(factors, embed, by_extent=coordinates.follow_extent)


def _host(request: Request, parts: Arrays, size: Resolution) -> Arrays:
    return inputs.fill(parts, *request.model.grid(size), request.model.prefix)


def _in_precision(draft: Draft, graph: Graph, sample: Sample, progress: Progress) -> dict[Form, Graph]:
    """The graph in the precision asked for, in every form that it is worth having in.

    Before it is rounded it must be the reference's to the last digits: what a lower precision may err by would hide
    a wrong table. The same run says how large values get, which a format must be able to hold.
    """
    from ropevit_export import passes
    from ropevit_export.backends.float32 import Float32Graph

    request, io = draft.request, graph.io
    if request.precision == "fp32":
        return {"portable": graph}
    with _stage(f"{request.precision} {io.resolution}", progress) as note:
        probed, probes = passes.probed(graph.model)
        session = Float32Graph(probed)
        answers = [
            session.run({io.image.name: sample.images[chosen], **sample.host})
            for chosen in measure.chunks(io.batch.min, len(sample.images))
        ]
        found = measure.compared("the float32 graph", io, sample, answers, session.describe, TOLERANCES["fp32"])
        draft.notes += [f"before rounding: {each.sentence()}" for each in found]
        draft.parity += [each for each in found if not each.passed]
        draft.require_parity()
        largest = [max(float(answer[probe.output]) for answer in answers) for probe in probes]
        rounded: Precision = "fp16" if request.calib else request.precision  # of an 8-bit graph's other operations
        passes.refuse_overflow(list(zip(probes, largest, strict=True)), rounded)
        top = int(np.argmax(largest))
        note(f"largest value {largest[top]:.3g} at {probes[top].place}")
    io_dtype = DTYPES[request.io_precision]
    if request.calib is None:
        return {"portable": passes.convert(graph, request.precision, io_dtype)}
    with _stage(f"calibration {sample.resolution}", progress) as note:
        measured_on = calibration.feeds(request.calib, io, sample.resolution, sample.host, request.preprocess)
        coding: Coding = "int8" if request.precision == "int8" else "fp8"
        both = passes.run_quantized(graph, coding, measured_on, Float32Graph, io_dtype)
        draft.notes.append(f"8-bit ranges: {len(calibration.pictures(request.calib))} images of {_source(request)}")
        note(draft.notes[-1])
    forms: dict[Form, Graph] = {"portable": both.engines}
    return forms | ({"onnxruntime": both.onnxruntime} if both.onnxruntime is not None else {})


def _write_graph(
    draft: Draft, graph: Graph, outputs: Sequence[TensorSpec], form: Form
) -> tuple[ArtifactEntry, Mapping[str, set[str]]]:
    """The listed artifact, and what its products may run in."""
    path, precision = draft.write_graph(graph, form), draft.request.precision
    counted, products = census.of_graph(path, precision, form)
    counted.require(path.name, precision)
    return draft.add_graph(path, graph, form, outputs, counted.rows()), products


def _check_graph(draft: Draft, artifact: ArtifactEntry, io: IoSpec, sample: Sample, progress: Progress) -> None:
    from ropevit_export.backends.select import checkers

    precision = draft.request.precision
    with _stage(f"parity {sample.resolution}", progress) as note:
        found = [
            report
            for runner in checkers(draft.folder / artifact.path, precision)
            for report in measure.measure(runner, artifact.path, io, sample, TOLERANCES[precision])
        ]
        draft.parity += found
        note(max(found, key=lambda report: report.metrics.relative).sentence())


def _add_engine(draft: Draft, source: Source, maker: Builder, cache: Path | None, progress: Progress) -> None:
    """Build an engine from a graph and, where it runs here, compare its answers with the reference's."""
    from ropevit_export.backends import cache as engine_cache

    request, io, onnx = draft.request, source.io, draft.folder / source.artifact.path
    spec, path = _engine_spec(request, maker, io), onnx.with_suffix(maker.suffix)
    with _stage(f"{maker.runtime} {io.resolution}", progress) as note:
        plan = engine_cache.build(maker, onnx, draft.weights.path, spec, path, cache)
        layers = draft.write_layers(onnx, maker.suffix, plan)
        wanted = {node: {plan.promotions.get(name, name) for name in names} for node, names in source.products.items()}
        counted = census.of_engine(plan.layers, wanted)
        counted.require(path.name, request.precision, plan.promotions)
        if spec.require_fused_attention:
            fusion.require(path.name, onnx, plan.layers)
        size = sum(file.stat().st_size for file in plan.files)
        targets = f", SM {', '.join(plan.targets)}" if plan.targets else ""
        note(f"{len(plan.layers)} kernels, {size / 1e6:.0f} MB{targets}")
    # A plan without weights has no answers until a host puts them back.
    runner = None if spec.options.strip_weights else maker.runner(path, request.precision)
    ran = "" if runner is not None else ", not run here"
    draft.notes.append(f"{path.name}: {len(plan.layers)} kernels, built with {plan.built_with}{ran}")
    for named in request.named_sizes(io) if runner is not None else ():
        with _stage(f"parity {named}", progress) as note:
            images, expected = golden.read(draft.folder / golden.name(named), io.output_names)
            sample = Sample(resolution=named, images=images, host=source.hosts[named], expected=expected)
            assert runner is not None
            found = measure.measure(runner, path.name, io, sample, TOLERANCES[request.precision])
            draft.parity += found
            note(max(found, key=lambda report: report.metrics.relative).sentence())
    draft.add_engine(source.artifact, spec, plan, layers, counted.rows())


def _as_fed(sample: Sample, io: IoSpec) -> Sample:
    """A sample with images and the host's arrays in the formats that the graph takes."""
    return dataclasses.replace(
        sample,
        images=in_format(sample.images, io.image.dtype),
        host={name: in_format(array, io.dtype) for name, array in sample.host.items()},
    )


def _output(io: IoSpec, output: Output, expected: Array) -> TensorSpec:
    extents: list[int | str] = [io.batch_extent, *expected.shape[1:]]
    if io.any_size and output.kind == "tokens":
        extents[1] = "tokens"
    if io.any_size and output.kind == "features":
        extents[2:] = ["rows", "columns"]
    return TensorSpec(name=output.name, dtype=io.dtype, shape=tuple(extents))


def _source(request: Request) -> str:
    """Where calibration images came from, by name: a bundle says nothing about the machine it was made on."""
    return Path(request.calib or "").resolve().name if request.calib != BUILT_IN else "the packaged digits"


def _frequencies(spec: ModelSpec, weights: Weights) -> list[Array]:
    from ropevit_export.models.families import FAMILIES

    return FAMILIES[spec.family].frequencies(spec, weights)


@contextmanager
def _report_kept(draft: Draft, final: Path) -> Iterator[None]:
    """Where parity ends the block, what was measured is kept beside where the bundle would have been."""
    try:
        yield
    except ParityError as error:
        kept = draft.keep_report(final)
        raise ParityError(f"{error}; no bundle was written, the report is {kept}.") from error


@contextmanager
def _stage(name: str, progress: Progress) -> Iterator[Callable[[str], None]]:
    progress(name)
    start, said = time.perf_counter(), [""]
    yield lambda text: said.__setitem__(0, text)
    log.info("%s: %s, %.1f s", name, said[0], time.perf_counter() - start)
