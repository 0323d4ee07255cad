"""`eval BUNDLE --data DIR`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS
from ropevit_export.cli.terminal import add_row, counted, say, show
from ropevit_export.machine.process import quiet_libraries
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.verbs.evaluate import Accuracy


@cli.command(name="eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="DIR|digits", help="One folder a class, as ImageNet's; or the built-in digits."
)
@click.option("--weights", metavar="PATH|random", help="PyTorch's weights, if not where the manifest says.")
@click.option("--backend", type=click.Choice(BACKENDS), help="What runs the graphs  [default: as `check` does].")
@click.option("--res", metavar="N|HxW", help="One size  [default: all that the bundle names].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N images, spread over all classes.")
@click.option("--skip-unreadable", is_flag=True, help="Leave pictures out that can't be read, and count them.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def evaluate(
    bundle: Path, data: str, weights: str | None, backend: str | None, res: str | None, limit: int | None,
    skip_unreadable: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Accuracy of a bundle's graphs beside PyTorch's, on the same images."""
    from ropevit_export.verbs import evaluate as evaluating

    resolution = Resolution.parse(res) if res else None
    with quiet_libraries(), counted("images", quiet=quiet) as progress:
        rows = evaluating.evaluate(
            bundle, data, weights=weights, backend=backend, resolution=resolution, limit=limit,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )  # fmt: skip
    if rows and rows[0].unreadable:
        say(f"{rows[0].unreadable} pictures of --data can't be read and are left out", err=True)
    if as_json:
        say(json.dumps({"bundle": str(bundle), "data": data, "accuracy": [dataclasses.asdict(each) for each in rows]}))
    else:
        _print_accuracy(rows)


def _print_accuracy(rows: Sequence[Accuracy]) -> None:
    from rich.table import Table

    table = Table("contender", "runtime", "size", "images", "top-1 %", "top-5 %", "to PyTorch", "published")
    for each in rows:
        height, width = each.resolution
        add_row(
            table,
            each.contender,
            each.runtime,
            f"{height}x{width}",
            str(each.images),
            f"{each.top1:.2f}",
            "" if each.top5 is None else f"{each.top5:.2f}",
            f"{each.difference:+.2f} ± {each.standard_error:.2f}",
            "" if each.published is None else f"{each.published:.1f}",
        )
    show(table, 160)
