"""The stages of one export, each a function that returns a value or raises."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.bundle import manifest, onnx_file
from ropevit_export.bundle.draft import Draft
from ropevit_export.errors import CheckpointError
from ropevit_export.images import calibration
from ropevit_export.images.files import BUILT_IN
from ropevit_export.images.preprocess import normalise
from ropevit_export.models.frequencies import axial
from ropevit_export.models.spec import ModelSpec
from ropevit_export.parity import measure, samples
from ropevit_export.parity.measure import Sample
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.planning import LOGITS
from ropevit_export.request import Request
from ropevit_export.rope import inputs
from ropevit_export.values import DTYPES, Checkpoint, Form, Graph, IoSpec, Precision, Resolution, Weights

if TYPE_CHECKING:
    from ropevit_export.backends.base import Builder
    from ropevit_export.passes.quantize.codes import Coding
    from ropevit_export.values import Array, Arrays, State

log = logging.getLogger("ropevit_export")

Progress = Callable[[str], None]


@contextmanager
def stage(name: str, progress: Progress) -> Iterator[Callable[[str], None]]:
    progress(name)
    start, said = time.perf_counter(), [""]
    yield lambda text: said.__setitem__(0, text)
    log.info("%s: %s, %.1f s", name, said[0], time.perf_counter() - start)


def load(request: Request, progress: Progress, tensors: State | None = None) -> tuple[Request, Weights, Checkpoint]:
    """The weights, and the request with the model as they have it: its windows, and where its final norm stands.

    tensors: a module's own, in the place of what the request says.
    """
    from ropevit_export.checkpoint import source
    from ropevit_export.models import filed
    from ropevit_export.models.initial import random_checkpoint

    with stage("weights", progress) as note:
        if tensors is not None:
            checkpoint = source.of_tensors(tensors)
        else:
            checkpoint = source.load(request, lambda: random_checkpoint(request.model, request.seed))
        given = filed.Given(key=request.weights_key, sizes=request.resolutions, published=not request.own_weights)
        model, weights = filed.read(request.model, checkpoint, given)
        request = dataclasses.replace(request, model=model)
        if not weights.classes and LOGITS in [output.name for output in request.outputs]:
            raise CheckpointError(
                f"the weights ({checkpoint.source}) have no head, which --output logits needs: take --output pooled, "
                "cls, tokens or features."
            )
        if request.single_file:  # of 4 bytes a number until it is converted
            sizes = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
            onnx_file.check_single(sizes[request.precision] * sum(each.numel() for each in weights.tensors.values()))
        at = f" at {checkpoint.revision}" if checkpoint.revision else ""
        head = f"{weights.classes} classes" if weights.classes else "no head"
        note(f"{checkpoint.source}{at}, {head}{'' if checkpoint.trained else ', UNTRAINED'}")
    # The tensors themselves go with the caller's `weights`; two owners would double the peak of memory.
    return request, weights, dataclasses.replace(checkpoint, dictionaries={})


def reference_answers(request: Request, weights: Weights, size: Resolution, progress: Progress) -> tuple[Array, Arrays]:
    """What a float32 graph is fed, and the unfolded model's answers."""
    from ropevit_export.models import reference
    from ropevit_export.models.resize import resize

    preprocess = request.preprocess
    with stage(f"reference {size}", progress) as note:
        pixels = samples.pixels(preprocess, size, request.seed)
        normalised = normalise(pixels, preprocess)
        sized = resize(request.model, weights, size)
        expected = reference.run(reference.build(request.model, sized, size, request.outputs), normalised)
        rms = ", ".join(f"{name} {np.sqrt((answer**2).mean()):.3g}" for name, answer in expected.items())
        note(f"PyTorch float32 on {len(normalised)} images, rms of {rms}")
    return pixels if request.pixels else normalised, expected


def traced(request: Request, weights: Weights, io: IoSpec, progress: Progress) -> Graph:
    from ropevit_export import passes
    from ropevit_export.models.resize import resize
    from ropevit_export.rope.tables import block_factors, block_tables
    from ropevit_export.trace.export import trace, trace_dynamic, trace_inputs

    spec = request.model
    freqs, coordinates = _frequencies(spec, weights), spec.rope.coordinates
    with stage(f"trace {io.resolution}", progress) as note:
        if io.rope == "inputs":
            traced = trace_inputs(spec, weights, io)
        elif io.rope == "dynamic":
            factors = block_factors(freqs, coordinates, spec.grid(io.resolution))
            traced = trace_dynamic(spec, weights, factors, io)
        else:
            tables = block_tables(freqs, coordinates, spec.window(io.resolution), spec.prefix)
            traced = trace(spec, resize(spec, weights, io.resolution), tables, io)
        note(f"{len(traced.model.graph)} nodes")
    with stage(f"passes {io.resolution}", progress) as note:
        graph = passes.simplify(traced)
        for record in graph.history:
            log.debug("pass %s: %s → %s nodes%s", record.name, record.nodes_before, record.nodes_after,
                      "" if record.fired else ", nothing to do")  # fmt: skip
        fired = [record.name for record in graph.history if record.fired]
        note(
            f"{len(traced.model.graph)} → {len(graph.model.graph)} nodes, "
            f"{len(fired)} of {len(graph.history)} fired: {', '.join(fired)}"
        )
    return graph


# Heads of a block that a report shows, and the theta of the authors' axial models, which it shows beside learned ones.
_SHOWN_HEADS = 2
_AXIAL_THETA = {"vit": 100.0, "swin": 50.0}


def rotary(request: Request, weights: Weights) -> manifest.RotaryEntry | None:
    """Some of the frequencies, for the report: of the first block and, where they differ, the last."""
    spec, freqs = request.model, _frequencies(request.model, weights)
    if not freqs:
        return None
    count = freqs[0].shape[-1]
    # Three of each half: axial models turn one half with columns, the other with rows.
    pairs = sorted({half + step for half in (0, count // 2) for step in (0, count // 8, count // 4)})
    blocks = (0,) if freqs[-1] is freqs[0] else (0, len(freqs) - 1)
    heads = [
        _head(freqs[block][:, head, pairs], block, head if freqs[block].shape[1] > 1 else None)
        for block in blocks
        for head in range(min(_SHOWN_HEADS, freqs[block].shape[1]))
    ]
    if spec.rope.kind == "mixed":
        like = dataclasses.replace(spec.rope, kind="axial", theta=_AXIAL_THETA[spec.family])
        heads.append(_head(axial(like, spec.head_dim)[:, 0, pairs], None, None))
    return manifest.RotaryEntry(
        rule=spec.rope.describe(),
        coordinates=manifest.CoordinatesEntry(**dataclasses.asdict(spec.rope.coordinates)),
        grid=spec.window(request.resolutions[0]),
        pairs=tuple(pairs),
        heads=tuple(heads),
    )


def _head(freqs: Array, block: int | None, head: int | None) -> manifest.HeadEntry:
    """freqs (2, pairs), in nine digits, which is what float32 holds."""
    x, y = (tuple(float(f"{each:.9g}") for each in axis) for axis in freqs)
    return manifest.HeadEntry(block=block, head=head, x=x, y=y)


def position_parts(request: Request, weights: Weights, io: IoSpec) -> Arrays:
    """What the host fills the graph's position inputs from, if it has any."""
    if not io.positions:
        return {}
    from ropevit_export.rope.tables import block_factors

    spec = request.model
    embed = None
    if weights.embed_grid is not None:
        grid = weights.tensors["pos_embed"][:, spec.embedded_prefix :]
        embed = grid.numpy().reshape(*weights.embed_grid, -1)
    coordinates = spec.rope.coordinates
    factors = block_factors(_frequencies(spec, weights), coordinates, spec.grid(io.resolution))
    return inputs.parts(factors, embed, by_extent=coordinates.follow_extent, interpolation=spec.ape_resize)


def host(request: Request, parts: Arrays, size: Resolution) -> Arrays:
    return inputs.fill(parts, *request.model.grid(size), request.model.prefix)


def forms(
    draft: Draft, graph: Graph, sample: Sample, makers: Sequence[Builder], progress: Progress
) -> dict[Form, Graph]:
    """The graph in the precision asked for, first as all runtimes take it, then in the forms that one is faster with:
    ONNX Runtime's, and those of what is built from it.
    """
    from ropevit_export import passes

    made = _in_precision(draft, graph, sample, progress)
    single_file = draft.request.single_file  # each form would hold all weights once more
    if single_file and draft.request.calib is None:
        made.pop("onnxruntime", None)
    if any(maker.form == "openvino" for maker in makers):
        if turned := passes.for_openvino(made["portable"]):
            made["openvino"] = turned
        if draft.request.precision == "fp32" and not single_file:
            source = made.get("openvino", made["portable"])
            if apart := passes.for_openvino_without_avx512(source):
                made["openvino-avx2"] = apart
    return made


def _in_precision(draft: Draft, graph: Graph, sample: Sample, progress: Progress) -> dict[Form, Graph]:
    """As all runtimes take it and, of 8 bits, as ONNX Runtime does on a CPU.

    Before it is rounded it must be the reference's to the last digits: what a lower precision may err by would hide
    a wrong table. The same run says how large values get, which a format must be able to hold.
    """
    from ropevit_export import passes
    from ropevit_export.backends.float32 import Float32Graph

    request, io = draft.request, graph.io
    if request.precision == "fp32":
        return _with_fast(graph, passes.for_onnxruntime(graph, "fp32"))
    with stage(f"{request.precision} {io.resolution}", progress) as note:
        probed, probes = passes.probed(graph.model)
        session = Float32Graph(probed)
        answers = [
            session.run({io.image.name: sample.images[chosen], **sample.host})
            for chosen in measure.chunks(io.batch.min, len(sample.images))
        ]
        found = measure.compared("the float32 graph", io, sample, answers, session.describe, TOLERANCES["fp32"])
        del session, probed  # calibration needs the memory
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
        fast = passes.for_onnxruntime(graph, "fp16", io_dtype) if request.precision == "fp16" else None
        return _with_fast(passes.convert(graph, request.precision, io_dtype), fast)
    with stage(f"calibration {sample.resolution}", progress) as note:
        pictures = calibration.pictures(request.calib, skip_unreadable=request.skip_unreadable)
        measured_on = calibration.feeds(pictures, io, sample.resolution, sample.host, request.preprocess)
        coding: Coding = "int8" if request.precision == "int8" else "fp8"
        both = passes.run_quantized(graph, coding, measured_on, Float32Graph, io_dtype)
        draft.notes.append(f"8-bit ranges: {len(pictures)} images of {_source(request)}")
        note(draft.notes[-1])
    return _with_fast(both.engines, both.onnxruntime)


def _with_fast(portable: Graph, onnxruntime: Graph | None) -> dict[Form, Graph]:
    made: dict[Form, Graph] = {"portable": portable}
    return made if onnxruntime is None else made | {"onnxruntime": onnxruntime}


def _source(request: Request) -> str:
    """Where calibration images came from, by name: a bundle says nothing about the machine it was made on."""
    return Path(request.calib or "").resolve().name if request.calib != BUILT_IN else "the packaged digits"


def _frequencies(spec: ModelSpec, weights: Weights) -> list[Array]:
    from ropevit_export.models.families import FAMILIES

    return FAMILIES[spec.family].frequencies(spec, weights)
