"""One export, in order: checkpoint → models → rope → trace → passes → backends → parity → bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ropevit_export import planning, stages
from ropevit_export.bundle import golden, staging
from ropevit_export.bundle.draft import Draft
from ropevit_export.bundle.manifest import ArtifactEntry, Bundle
from ropevit_export.bundle.resume import existing
from ropevit_export.errors import ParityError, UsageError
from ropevit_export.images.preprocess import in_format
from ropevit_export.inspect import census, fusion
from ropevit_export.parity import measure
from ropevit_export.parity.measure import Sample
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.report import page
from ropevit_export.request import Request
from ropevit_export.stages import Progress, stage
from ropevit_export.values import (
    Form,
    Graph,
    IoSpec,
    Output,
    Resolution,
    TensorSpec,
    Weights,
)

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder
    from ropevit_export.values import Array, Arrays, State


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
    weights: State | None = None,
) -> Bundle:
    """Run every stage for every resolution and write the bundle. `cache`: a folder of engines built before.
    `weights`: a module's `state_dict()`, in the place of those that the request names.

    `resume`: a bundle that the same request has made already is kept, and one that another process is making now is
    waited for; without it both are errors.

    Raises RopevitError; a bundle that is out of tolerance is not written, its report is kept beside where it would be.
    """
    if out is not None:
        out = out.expanduser()
        out = out if out.name not in ("", "..") else out.resolve()
        if resume and (kept := existing(request, out, force=force)):
            return kept
    if weights is not None and (resume or request.weights != "auto"):
        raise UsageError(
            f"weights were given as tensors, and as {'resume' if resume else request.weights!r}: leave one out."
        )
    makers, remark = planning.makers(request)
    if out is not None:
        staging.refuse_existing(out, force=force)
    request, loaded, checkpoint = stages.load(request, progress, weights)
    final = planning.final_folder(request, checkpoint, out)
    with staging.claimed(final, waiting=(lambda: progress("waiting for another process")) if resume else None):
        if resume and (kept := existing(request, final, force=force)):
            return kept
        with staging.staged(final, force=force) as folder:
            draft = Draft(
                folder, request, checkpoint, loaded.classes, [*planning.choices(request, loaded), *loaded.choices]
            )
            draft.rotary = stages.rotary(request, loaded)
            with _report_kept(draft, final):
                sources = [_add_graph(draft, loaded, io, makers, progress) for io in request.graphs()]
                del loaded  # builders need the memory
                for maker in makers:
                    for forms in sources:
                        _add_engine(draft, forms.get(maker.form, forms["portable"]), maker, cache, progress)
                    draft.require_parity()
                written = draft.close(lambda folder, listed: page.render([page.Subject(folder, listed, final.name)]))
    return Bundle(path=final, manifest=written, remark=remark)


def _add_graph(
    draft: Draft, weights: Weights, io: IoSpec, makers: Sequence[Builder], progress: Progress
) -> dict[Form, Source]:
    """From weights to ONNX files, one a form, that are checked at one size or, dynamic ones, at several."""
    request = draft.request
    references = {
        size: stages.reference_answers(request, weights, size, progress) for size in request.checked_sizes(io)
    }
    graph = stages.traced(request, weights, dataclasses.replace(io, dtype="float32"), progress)  # until it is converted
    parts = stages.position_parts(request, weights, io)
    if parts:
        draft.add_positions(parts)
    samples_by_size = {
        size: Sample(resolution=size, images=images, host=stages.host(request, parts, size), expected=expected)
        for size, (images, expected) in references.items()
    }
    first = next(iter(samples_by_size.values()))
    listed = [_output(io, output, first.expected[output.name]) for output in io.outputs]
    hosts = {size: _as_fed(sample, io).host for size, sample in samples_by_size.items()}
    sources = {
        form: _write_graph(draft, converted, listed, form, hosts)
        for form, converted in stages.forms(draft, graph, first, makers, progress).items()
    }
    del graph
    for size, exact in samples_by_size.items():
        sample = _as_fed(exact, io)
        for source in sources.values():
            _check_graph(draft, source.artifact, io, sample, progress)
        draft.add_golden(size, sample.images, sample.expected, sample.host)
    draft.require_parity()
    return sources


def _write_graph(
    draft: Draft, graph: Graph, outputs: Sequence[TensorSpec], form: Form, hosts: Mapping[Resolution, Arrays]
) -> Source:
    """Written and listed."""
    precision = draft.request.precision
    path = draft.write_graph(graph, form, outputs, dataclasses.asdict(TOLERANCES[precision]))
    counted, products = census.of_graph(path, precision, form)
    counted.require(path.name, precision)
    artifact = draft.add_graph(path, graph, form, outputs, counted.rows())
    return Source(io=graph.io, artifact=artifact, products=products, hosts=hosts)


def _check_graph(draft: Draft, artifact: ArtifactEntry, io: IoSpec, sample: Sample, progress: Progress) -> None:
    from ropevit_export.backends.select import checkers

    precision = draft.request.precision
    with stage(f"parity {sample.resolution}", progress) as note:
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
    spec, path = planning.engine_spec(request, maker, io), draft.path(io, maker.suffix)
    with stage(f"{maker.runtime} {io.resolution}", progress) as note:
        plan = engine_cache.build(maker, draft.graph_files(onnx), spec, path, cache)
        layers = draft.write_layers(path, plan)
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
        with stage(f"parity {named}", progress) as note:
            images, expected = golden.read(draft.folder / golden.name(named), list(io.output_names))
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


@contextmanager
def _report_kept(draft: Draft, final: Path) -> Iterator[None]:
    """Where parity ends the block, what was measured is kept beside where the bundle would have been."""
    try:
        yield
    except ParityError as error:
        kept = draft.keep_report(final)
        raise ParityError(f"{error}; no bundle was written, the report is {kept}.") from error
