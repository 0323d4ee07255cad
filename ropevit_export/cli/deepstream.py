"""`deepstream BUNDLE --frame HxW --out DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say
from ropevit_export.values import Resolution


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Must not be there yet.")
@click.option("--frame", required=True, metavar="HxW", help="Rows and columns of the videos, such as 1080x1920.")
@click.option("--res", metavar="N|HxW", help="The bundle's size to use  [default: the first].")
@click.option("--sources", type=click.IntRange(1), default=1, show_default=True, help="Videos that make a batch.")
def deepstream(bundle: Path, out: Path, frame: str, res: str | None, sources: int) -> None:
    """Write what DeepStream's nvdspreprocess and nvinfer need to run a bundle made with --pixels."""
    from ropevit_export.verbs import deepstream as writing

    size = Resolution.parse(res) if res else None
    names = writing.write(bundle, out, frame=Resolution.parse(frame), size=size, sources=sources)
    say(f"{out}: {', '.join(names)}")
