"""`tune BUNDLE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS
from ropevit_export.cli.terminal import add_row, progress_bar, say, show
from ropevit_export.errors import RopevitError
from ropevit_export.machine.process import quiet_libraries
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.bundle.manifest import Bundle
    from ropevit_export.tuned import Goal, Tuned


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "goal",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One answer soon, or many: then several are computed side by side.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    help="Try this one; repeatable.  [default: all that can run here]",
)
@click.option("--res", metavar="N|HxW", help="Image size  [default: the bundle's first].")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images a batch.")
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Runs of every setting.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def tune(
    bundle: Path, goal: Goal, backends: tuple[str, ...], res: str | None, batch: int, rounds: int, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Find how this machine runs a bundle fastest, for runtime.load(BUNDLE, "auto").

    Backends, forms, threads, streams and, in OpenVINO, bfloat16: what answers the golden inputs within the bundle's
    limits is timed in turn. The table goes into BUNDLE/tuned.json, which counts on this machine alone.
    """
    from ropevit_export.verbs import tune as tuning

    with quiet_libraries(), progress_bar(None, quiet=quiet) as progress:
        found = tuning.tune(
            bundle,
            goal=goal,
            backends=tuple(dict.fromkeys(backends)),
            resolution=Resolution.parse(res) if res else None,
            batch=batch,
            rounds=rounds,
            progress=progress,
        )
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        _print(found)


def of_new(bundle: Bundle, *, shown: bool, quiet: bool) -> None:
    """The same for a bundle that was just written, in its smallest batch, with every option left alone."""
    from ropevit_export.verbs import tune as tuning

    try:
        with quiet_libraries(), progress_bar(None, quiet=quiet) as progress:
            smallest = bundle.manifest.artifacts[0].batch.min
            found = tuning.tune(bundle.path, batch=smallest, progress=progress)
    except RopevitError as error:
        raise type(error)(f"{bundle.path} is written and whole, but can't be tuned: {error}") from error
    if shown:
        _print(found)


def _print(found: Tuned) -> None:
    from rich.table import Table

    table = Table("setting", "ms a batch", "images/s", "error of limit", "")
    for row in sorted(found.rows, key=lambda row: row.milliseconds or float("inf")):
        add_row(
            table,
            row.setting.name,
            "" if row.milliseconds is None else f"{row.milliseconds:.1f}",
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            "" if row.worst is None else f"{row.worst:.3f}",
            "chosen" if row.setting == found.chosen else row.reason,
        )
    show(table)
    height, width = found.resolution
    where = f"{height}x{width}, batch {found.batch}, on {found.machine.processor}, {found.machine.cores} cores"
    say(f'{found.chosen.name}: for {found.goal} at {where}; runtime.load(…, "auto") takes it there.')
