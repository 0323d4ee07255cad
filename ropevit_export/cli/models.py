"""`models`: what there is to export."""

from __future__ import annotations

import dataclasses
import json

import click

from ropevit_export.cli.export import cli
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, MODELS


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def models(as_json: bool) -> None:
    """List the models by all their names, and an example whose trained weights are in this package."""
    listed = (*MODELS, *EXAMPLES)
    if as_json:
        click.echo(json.dumps([_row(spec) for spec in listed], indent=2))
        return
    widths = [max(len(getattr(spec, field) or "") for spec in listed) for field in ("short", "name")]
    for spec in listed:
        click.echo(f"{spec.short:{widths[0]}}  {spec.name:{widths[1]}}  {spec.timm or '-'}")


def _row(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "short": spec.short,
        "timm": spec.timm,
        "rope": spec.rope.kind,
        "classes": spec.classes,
        "multiple": spec.multiple,
        "transform": dataclasses.asdict(spec.transform),
        "weights": [f"{file.repo}/{file.filename}" for file in spec.hub],
    }
