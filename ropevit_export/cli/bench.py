"""`bench BUNDLE...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS, PEERS, count, list_of
from ropevit_export.cli.terminal import add_row, progress_bar, say, show
from ropevit_export.machine.process import quiet_libraries
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.verbs.bench import Benchmark


@cli.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(PEERS),
    help="What else runs the model: PyTorch, its plain torch.onnx.export, and what others make of it in 16 or 8 bits; "
    "repeatable.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(BACKENDS),
    default=("onnxruntime",),
    help="What runs bundles and plain exports; repeatable.  [default: onnxruntime]",
)
@click.option("--res", metavar="N|HxW", help="Image size  [default: the first of the first bundle].")
@click.option(
    "--batch", "batches", multiple=True, metavar="N", callback=list_of(count), help="Repeatable.  [default: 1]"
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Runs of every contender.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the result there, as JSON.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw it there: .png, .svg or .pdf."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def bench(
    bundles: tuple[Path, ...], peers: tuple[Any, ...], backends: tuple[str, ...], res: str | None,
    batches: tuple[int, ...], rounds: int, out: Path | None, picture: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Time bundles in turn with one another and with what else there is; ratios are to the first."""
    from ropevit_export.verbs import bench as benching
    from ropevit_export.verbs import plot

    if picture is not None:
        plot.check(picture)
    resolution = Resolution.parse(res) if res else None
    contenders = benching.contenders(bundles, tuple(dict.fromkeys(peers)), tuple(dict.fromkeys(backends)))
    batches = batches or (1,)
    stages = len(batches) * (len(contenders) + benching.WARM_UP + rounds)
    with quiet_libraries(), progress_bar(stages, quiet=quiet) as progress:
        result = benching.bench(contenders, resolution=resolution, batches=batches, rounds=rounds, progress=progress)
    text = json.dumps(result.as_json(), indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if picture is not None:
        plot.draw(result, picture)
    if as_json:
        say(text)
    else:
        _print_timings(result)


def _print_timings(result: Benchmark) -> None:
    from rich.table import Table

    first = result.timings[0].contender
    table = Table("contender", "batch", "p50 ms", "p90", "p99", "images/s", f"of {first}", "quartiles", "peak MB")
    for each in result.timings:
        s = each.summary()
        add_row(
            table,
            each.contender,
            str(each.batch),
            *(f"{s[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "images_per_second")),
            f"{s['ratio']:.3f}",
            f"{s['ratio_q25']:.3f}–{s['ratio_q75']:.3f}",
            str(each.peak_mb or ""),
        )
    show(table)
    machine = result.machine
    cpu = machine.get("model_name") or machine["processor"]
    say(f"{result.resolution}, {result.rounds} rounds in turn, {cpu}, {machine['cores']} cores")
    for gpu in result.gpus_under_load:
        say(f"  batch {gpu['batch']}: {gpu['name']}, driver {gpu['driver_version']}, SM {gpu['clocks_sm_mhz']} MHz")
    for each in {each.contender: each for each in result.timings}.values():
        say(f"  {each.contender}: {each.runtime}, {each.transfers_in_words}")
