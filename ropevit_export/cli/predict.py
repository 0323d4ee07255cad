"""`predict BUNDLE --data DIR|FILE --out FILE.parquet`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS
from ropevit_export.cli.terminal import counted, say
from ropevit_export.machine.process import Interrupted, quiet_libraries
from ropevit_export.values import Resolution


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="DIR|FILE",
    help="A folder of pictures, or a text file with a path a line.",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE.parquet",
    help="A row a picture, in the order of their names or of the list.",
)  # fmt: skip
@click.option("--backend", type=click.Choice(BACKENDS), default="onnxruntime", show_default=True, help="What runs it.")
@click.option("--res", metavar="N|HxW", help="Size that pictures are prepared to  [default: the bundle's first].")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes kept, of logits.")
@click.option(
    "--batch", type=click.IntRange(1), metavar="N", help="Pictures a run  [default: the most it takes, up to 32]."
)
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Names of the classes, one a line.")
@click.option("--ray", is_flag=True, help="On a Ray cluster; bundle and pictures must be on a shared filesystem.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def predict(
    bundle: Path, data: Path, out: Path, backend: str, res: str | None, top: int, batch: int | None,
    labels: Path | None, ray: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """A bundle's answers to all pictures of a folder or a list. A killed run goes on where it was."""
    from ropevit_export.verbs import predict as predicting
    from ropevit_export.verbs import predict_ray

    size = Resolution.parse(res) if res else None
    try:
        with quiet_libraries(), counted("pictures", quiet=quiet) as progress:
            asked = predicting.job(bundle, data, backend=backend, size=size, top=top, batch=batch, names=labels)
            answers = predict_ray.answers if ray else None
            done = predicting.predict(asked, out, answers=answers, progress=progress)
    except Interrupted as error:
        raise Interrupted(f"interrupted: the same command goes on with what is in {out}.parts.") from error
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(done), "out": str(done.out)}))
        return
    if done.computed:
        busy = f", {done.answering / done.seconds:.0%} of it in the runtime" if done.answering else ""
        rate = f"{done.computed / done.seconds:.1f} a second"
        say(f"{done.computed} pictures in {done.seconds:.1f} s, {rate}{busy}: {done.runtime}")
        if done.bad:
            say(f"{done.bad} of them can't be read: column `error` says why")
    say(f"{done.out}: {done.rows} rows")
