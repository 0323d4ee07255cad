"""`triton BUNDLE --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Must not be there yet.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
    help="Where graphs run; auto: a GPU if the server has one. cpu takes the graphs that are made for it.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(["own", "python"]), default="own", show_default=True,
    help="Triton's own for graphs and engines; python: this package's runtime, for servers without them.",
)  # fmt: skip
@click.option("--instances", type=click.IntRange(1), default=1, show_default=True, help="Of every model.")
@click.option(
    "--delay", type=click.IntRange(0), default=1000, show_default=True, metavar="MICROSECONDS",
    help="That a request may wait for others to make a batch.",
)  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Names of the classes, one a line.")
@click.option("--storage-uri", "storage", default="", metavar="URI", help="Where KServe finds the folder `models`.")
def triton(bundle: Path, out: Path, labels: Path | None, **options: Any) -> None:
    """Write a model repository for Triton Inference Server, and a manifest for KServe."""
    from ropevit_export.verbs.triton import repository

    names = repository.known_names(bundle, labels)
    models, remarks = repository.write(bundle, out, repository.Options(names=names, **options))
    for remark in remarks:
        say(remark, err=True)
    say(f"{out}: {', '.join(models)}")
