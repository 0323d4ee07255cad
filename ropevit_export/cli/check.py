"""`check BUNDLE`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.errors import ParityError, UsageError
from ropevit_export.machine.process import quiet_libraries


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--by-layer", "layers", is_flag=True, help="Name the first block where a graph leaves PyTorch in float64."
)
@click.option("--weights", metavar="PATH|random", help="With --by-layer: PyTorch's, if not where the manifest says.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def check(bundle: Path, layers: bool, weights: str | None, as_json: bool) -> None:
    """Verify a bundle's files, and its graphs against the reference outputs it carries."""
    from ropevit_export.verbs import check as checking

    if weights and not layers:
        raise UsageError("--weights is for --by-layer: check alone needs no PyTorch.")
    if layers:
        _check_by_layer(bundle, weights, as_json)
        return

    with quiet_libraries():
        reports = checking.check(bundle)
    if as_json:
        from ropevit_export.bundle.draft import parity_entry

        rows = [json.loads(parity_entry(each).model_dump_json()) for each in reports]
        click.echo(json.dumps({"bundle": str(bundle), "parity": rows}, indent=2, allow_nan=False))
    else:
        for each in reports:
            click.echo(each.sentence())
    failed = [each for each in reports if not each.passed]
    if failed:
        raise ParityError(failed[0].sentence())
    if not as_json:
        click.echo(f"{bundle}: every file as listed, {len(reports)} of {len(reports)} comparisons within tolerance")


def _check_by_layer(bundle: Path, weights: str | None, as_json: bool) -> None:
    from ropevit_export.verbs.by_layer import by_layer

    with quiet_libraries():
        found = by_layer(bundle, weights=weights)
    if as_json:
        rows = [{**dataclasses.asdict(each), "resolution": [each.resolution.height, each.resolution.width]}
                for each in found]  # fmt: skip
        click.echo(json.dumps({"bundle": str(bundle), "graphs": rows}))
    else:
        for each in found:
            click.echo(f"{each.runtime}:")
            for layer in each.errors:
                click.echo(f"  {layer.place:24} {layer.error:.2e}{'  <- jump' if layer == each.jump else ''}")
            click.echo(each.sentence())
    jumps = [each for each in found if each.jump is not None]
    if jumps:
        raise ParityError(jumps[0].sentence())
