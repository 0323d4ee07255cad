"""`check BUNDLE`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS
from ropevit_export.cli.terminal import say
from ropevit_export.errors import BackendError, ParityError, UsageError
from ropevit_export.machine.process import quiet_libraries

if TYPE_CHECKING:
    from ropevit_export.verbs.check import Checked


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--by-layer", "layers", is_flag=True, help="Name the first block where a graph leaves PyTorch in float64."
)
@click.option("--weights", metavar="PATH|random", help="With --by-layer: PyTorch's, if not where the manifest says.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    help="Run only what is for it: its engines or IR, else the ONNX graphs; it is an error if they can't run here.",
)
@click.option(
    "--compute",
    type=click.Choice(["f32", "bf16"]),
    help="With --backend openvino: what floating-point parts are computed in, if not what the precision says.",
)
@click.option(
    "--sha256",
    "pinned",
    metavar="DIGEST",
    help="Of manifest.json, as the export printed it: anything else than that very bundle is an error.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def check(
    bundle: Path,
    layers: bool,
    weights: str | None,
    backend: str | None,
    compute: str | None,
    pinned: str | None,
    as_json: bool,
) -> None:
    """Verify a bundle's files, and its graphs and engines against the reference outputs it carries."""
    from ropevit_export.verbs import check as checking

    if weights and not layers:
        raise UsageError("--weights is for --by-layer: check alone needs no PyTorch.")
    if backend and layers:
        raise UsageError("--by-layer runs ONNX graphs on ONNX Runtime's CPU provider: leave --backend out.")
    if compute and backend != "openvino":
        raise UsageError("--compute is OpenVINO's: give --backend openvino with it.")
    if pinned is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", pinned):
        raise UsageError(f"--sha256 {pinned!r} is no SHA-256: needs the 64 hexadecimal digits that the export printed.")
    if pinned and layers:
        raise UsageError("--by-layer hashes nothing: check with --sha256 first, then without.")
    if layers:
        _check_by_layer(bundle, weights, as_json)
        return

    with quiet_libraries():
        found = checking.check(bundle, backend, pinned=pinned, **({"compute": compute} if compute else {}))
    if as_json:
        say(json.dumps(_as_json(bundle, found), indent=2, allow_nan=False))
    else:
        for each in found:
            say("\n".join(each.sentences()))
    _require(found, backend)
    if not as_json:
        say(_summary(bundle, found, backend))


def _as_json(bundle: Path, found: Sequence[Checked]) -> dict[str, object]:
    from ropevit_export.bundle.draft import parity_entry

    rows = [json.loads(parity_entry(report).model_dump_json()) for each in found for report in each.reports]
    not_run = [{"artifact": each.artifact, "reason": each.reason} for each in found if each.reason]
    return {"bundle": str(bundle), "parity": rows, "not_run": not_run}


def _require(found: Sequence[Checked], backend: str | None) -> None:
    """Raise for the first comparison out of tolerance; then for what the backend asked for can't run."""
    for report in (report for each in found for report in each.reports):
        if not report.passed:
            raise ParityError(report.sentence())
    for each in found:
        if each.reason and backend:
            raise BackendError(each.sentences()[0])


def _summary(bundle: Path, found: Sequence[Checked], backend: str | None) -> str:
    compared, ran = sum(len(each.reports) for each in found), sum(bool(each.reports) for each in found)
    where = f"on {backend}" if backend else "here"
    return (
        f"{bundle}: every file as listed, {compared} of {compared} comparisons within tolerance, "
        f"{ran} of {len(found)} artifacts run {where}"
    )


def _check_by_layer(bundle: Path, weights: str | None, as_json: bool) -> None:
    from ropevit_export.verbs.by_layer import by_layer

    with quiet_libraries():
        found = by_layer(bundle, weights=weights)
    if as_json:
        rows = [{**dataclasses.asdict(each), "resolution": [each.resolution.height, each.resolution.width]}
                for each in found]  # fmt: skip
        say(json.dumps({"bundle": str(bundle), "graphs": rows}))
    else:
        for each in found:
            say(f"{each.runtime}:")
            for layer in each.errors:
                say(f"  {layer.place:24} {layer.error:.2e}{'  <- jump' if layer == each.jump else ''}")
            say(each.sentence())
    jumps = [each for each in found if each.jump is not None]
    if jumps:
        raise ParityError(jumps[0].sentence())
