"""`models`: what there is to export."""

from __future__ import annotations

import json

import click

from ropevit_export.cli.export import cli
from ropevit_export.models.zoo import EXAMPLES, MODELS


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def models(as_json: bool) -> None:
    """List the models by all their names: the paper's, and an example whose trained weights are in this package."""
    listed = (*MODELS, *EXAMPLES)
    if as_json:
        rows = [{"name": spec.name, "short": spec.short, "timm": spec.timm, "rope": spec.rope.kind} for spec in listed]
        click.echo(json.dumps(rows, indent=2))
        return
    widths = [max(len(getattr(spec, field) or "") for spec in listed) for field in ("short", "name")]
    for spec in listed:
        click.echo(f"{spec.short:{widths[0]}}  {spec.name:{widths[1]}}  {spec.timm or '-'}")
