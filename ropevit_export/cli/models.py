"""`models`: what there is to export."""

from __future__ import annotations

import dataclasses
import json

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import model_names
from ropevit_export.cli.terminal import say
from ropevit_export.errors import UsageError
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, FAMILIES, find_model


@cli.command()
@click.argument("name", required=False, shell_complete=model_names)
@click.option("--family", metavar="TEXT", help="Only families whose name has this in it, such as dino.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def models(name: str | None, family: str | None, as_json: bool) -> None:
    """List the models by family and by all their names, and an example whose trained weights are in this package; or
    show one, NAME, whole.
    """
    if name is not None:
        if family is not None:
            raise UsageError(f"--family filters the list, but one model is named, {name}: leave one out.")
        _show(find_model(name), as_json=as_json)
        return
    listed = {**FAMILIES, "example": EXAMPLES}
    if family is not None:
        wanted = family.lower()
        listed = {each: rows for each, rows in listed.items() if wanted in each.lower()}
        if not listed:
            raise UsageError(f"no family has {family!r} in its name: they are {', '.join(FAMILIES)}.")
    rows = [spec for specs in listed.values() for spec in specs]
    if as_json:
        say(json.dumps([_row(spec) for spec in rows], indent=2))
        return
    widths = [max(len(each) for each in listed)]
    widths += [max(len(getattr(spec, field) or "") for spec in rows) for field in ("short", "name")]
    for title, specs in listed.items():
        for spec in specs:
            shown = zip((title, spec.short, spec.name), widths, strict=True)
            say("  ".join([*(f"{text:{width}}" for text, width in shown), spec.timm or "-"]))


def _show(spec: ModelSpec, *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(_row(spec), indent=2))
        return
    lines = {
        "name": spec.name,
        "short": spec.short,
        "timm": f"{spec.timm}.{spec.tag}" if spec.timm and spec.tag else spec.timm or "-",
        "rotary": spec.rope.describe(),
        "size": f"{spec.size[0]}x{spec.size[1]}, any multiple of {spec.multiple}",
        "modes": "baked" if spec.window_of else "baked, dynamic, inputs",
        "blocks": f"{sum(spec.depths)} of width {'/'.join(map(str, spec.dims))}, heads of {spec.head_dim}",
        "tokens": f"{'class token, ' if spec.class_token else ''}{spec.registers} registers, patches",
        "pooled": f"{spec.pool} (can: {', '.join(spec.pools)})",
        "head": f"{spec.classes} classes" if spec.classes else "none",
        "images": str(spec.transform),
        "weights": _weights(spec),
        "licence": spec.licence,
    }
    for label, text in lines.items():
        say(f"{label:8} {text}")


def _weights(spec: ModelSpec) -> str:
    if spec.packaged:
        return "in this package"
    return ", ".join(f"{file.repo}{' (gated)' if file.gated else ''}" for file in spec.hub) or "none published"


def _row(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "short": spec.short,
        "timm": spec.timm,
        "rope": spec.rope.kind,
        "classes": spec.classes,
        "multiple": spec.multiple,
        "size": spec.size,
        "licence": spec.licence,
        "transform": dataclasses.asdict(spec.transform),
        "weights": [f"{file.repo}/{file.filename}" for file in spec.hub],
    }
