"""`report BUNDLE…`."""

from __future__ import annotations

from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say


@cli.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, metavar="FILE",
    help="The page; one that is there is replaced.",
)  # fmt: skip
@click.option(
    "--bench", type=click.Path(path_type=Path), metavar="FILE", help="Show latency: what `bench --out` wrote."
)
@click.option(
    "--by-layer", "layers", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Show the error block by block: what `check --by-layer --json` printed. Repeatable.",
)  # fmt: skip
def report(bundles: tuple[Path, ...], out: Path, bench: Path | None, layers: tuple[Path, ...]) -> None:
    """One page that shows a bundle, or several side by side, from their files alone."""
    from ropevit_export.verbs import report as reporting

    text = reporting.render(bundles, bench=bench, layers=layers)
    out.write_text(text, encoding="utf-8")
    say(str(out))
