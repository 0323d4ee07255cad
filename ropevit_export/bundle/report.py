"""`report.md`: what a person reads before shipping a bundle. All of it stands in the manifest."""

from __future__ import annotations

from ropevit_export.bundle.manifest import ArtifactEntry, Manifest, OutputEntry, ParityEntry

REPORT = "report.md"
PAGE = "report.html"  # by `ropevit_export.report`, from the same manifest
UNTRAINED = "UNTRAINED: seeded random weights, to build and time with, never to classify with"


def render(manifest: Manifest) -> str:
    weights, request = manifest.weights, manifest.request or {}
    at = f" at {weights.revision}" if weights.revision else ""
    # A float32 graph that is out of tolerance ends an export before there is an artifact.
    outputs = ", ".join(map(_output, manifest.artifacts[0].outputs)) if manifest.artifacts else manifest.output
    lines = [
        f"# {manifest.model}",
        "",
        *([f"**{weights.remark}.**", ""] if weights.remark else []),
        f"Weights: {weights.source}{at}, SHA-256 {weights.sha256}.",
        f"Rotary tables: {manifest.rope}. Precision: {request.get('precision', 'fp32')}; inputs and outputs: "
        f"{request.get('io_precision', 'fp32')}. Outputs: {outputs}.",
        "",
        *_section("Chosen for you", manifest.choices),
        "| artifact | size | batch | built with | targets |",
        "|---|---|---|---|---|",
        *map(_artifact, manifest.artifacts),
        "",
        "## Computed in",
        "",
        "| artifact | format | operations | of these products | MB: weights of a graph, traffic of an engine |",
        "|---|---|---|---|---|",
        *(
            f"| {artifact.path} | {count.format} | {count.operations} | {count.products} | {count.bytes / 1e6:.1f} |"
            for artifact in manifest.artifacts
            for count in artifact.census
        ),
        "",
        "## Parity",
        "",
        "| artifact | output | size | batch | max abs | mean abs | over rms | limit | cosine | top-1 "
        "| NaN, Inf | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, manifest.parity),
        "",
        *dict.fromkeys(
            f"- {entry.artifact}: {entry.runtime}, against {entry.reference}, on {entry.inputs}."
            for entry in manifest.parity
        ),
        *(f"- {note}." for note in manifest.notes),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, sentences: tuple[str, ...]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}." for sentence in sentences), ""] if sentences else []


def _output(output: OutputEntry) -> str:
    of = {None: "", "token": " of the class token", "avg": " of the mean over patches", "map": " of attention pooling"}
    return f"{output.name}{of[output.pool]}{'' if output.normed is not False else ', not normalised'}"


def _artifact(artifact: ArtifactEntry) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in artifact.resolutions)
    batch = f"{artifact.batch.min}:{artifact.batch.opt}:{artifact.batch.max}"
    targets = ", ".join(f"SM {target}" for target in artifact.targets)
    return f"| {artifact.path} | {sizes} | {batch} | {artifact.built_with} | {targets} |"


def _row(entry: ParityEntry) -> str:
    height, width = entry.resolution
    top1 = entry.metrics.get("top1")
    cells = (
        entry.artifact,
        entry.output,
        height if height == width else f"{height}x{width}",
        entry.batch,
        *(_number(entry.metrics[name], ".2e") for name in ("max_abs", "mean_abs", "relative")),
        f"{entry.tolerance['relative']:g}",
        _number(entry.metrics["cosine"], ".9f"),
        "" if top1 is None else f"{top1:.0%}",
        entry.metrics["not_finite"],
        "passed" if entry.passed else "FAILED",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | int | None, form: str) -> str:
    return "nan" if value is None else format(value, form)
