"""`report.md`: what a person reads before shipping a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from ropevit_export.bundle.manifest import ArtifactEntry
from ropevit_export.parity.compare import ParityReport
from ropevit_export.request import Request
from ropevit_export.values import Checkpoint

REPORT = "report.md"
UNTRAINED = "UNTRAINED: seeded random weights, to build and time with, never to classify with"


def render(
    request: Request,
    checkpoint: Checkpoint,
    artifacts: Sequence[ArtifactEntry],
    parity: Sequence[ParityReport],
    notes: Sequence[str],
) -> str:
    at = f" at {checkpoint.revision}" if checkpoint.revision else ""
    lines = [
        f"# {request.model.name}",
        "",
        *([] if checkpoint.trained else [f"**{UNTRAINED}.**", ""]),
        f"Weights: {checkpoint.source}{at}, SHA-256 {checkpoint.sha256}.",
        f"Rotary tables: {request.rope}. Precision: {request.precision}; inputs and outputs: "
        f"{request.io_precision}. Output: {request.output or request.default_output}.",
        "",
        "| artifact | size | batch | built with | targets |",
        "|---|---|---|---|---|",
        *(_artifact(each) for each in artifacts),
        "",
        "## Computed in",
        "",
        "| artifact | format | operations | of these products | MB: weights of a graph, traffic of an engine |",
        "|---|---|---|---|---|",
        *(
            f"| {each.path} | {count.format} | {count.operations} | {count.products} | {count.bytes / 1e6:.1f} |"
            for each in artifacts
            for count in each.census
        ),
        "",
        "## Parity",
        "",
        "| artifact | output | size | batch | max abs | mean abs | over rms | limit | cosine | top-1 "
        "| NaN, Inf | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(each) for each in parity),
        "",
        *dict.fromkeys(
            f"- {each.artifact}: {each.runtime}, against {each.reference}, on {each.inputs}." for each in parity
        ),
        *(f"- {note}." for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _artifact(each: ArtifactEntry) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in each.resolutions)
    batch = f"{each.batch.min}:{each.batch.opt}:{each.batch.max}"
    targets = ", ".join(f"SM {target}" for target in each.targets)
    return f"| {each.path} | {sizes} | {batch} | {each.built_with} | {targets} |"


def _row(each: ParityReport) -> str:
    m = each.metrics
    cells = (
        each.artifact,
        each.output,
        each.resolution,
        each.batch,
        f"{m.max_abs:.2e}",
        f"{m.mean_abs:.2e}",
        f"{m.relative:.2e}",
        f"{each.tolerance.relative:g}",
        f"{m.cosine:.9f}",
        "" if m.top1 is None else f"{m.top1:.0%}",
        m.not_finite,
        "passed" if each.passed else "FAILED",
    )
    return f"| {' | '.join(map(str, cells))} |"
