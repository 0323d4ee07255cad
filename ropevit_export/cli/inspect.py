"""`inspect BUNDLE`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import add_row, say, show
from ropevit_export.machine.process import quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from ropevit_export.inspect.report import EngineReport, GraphReport, Run


@cli.command()
@click.argument("bundle", metavar="BUNDLE|ENGINE", type=click.Path(path_type=Path))
@click.option("--gpu", metavar="NAME", help="Estimate times at a GPU's published peak rates, such as 'RTX 4090'.")
@click.option("--largest", type=click.IntRange(0), default=5, show_default=True, help="Kernels shown of every size.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def inspect(bundle: Path, gpu: str | None, largest: int, as_json: bool) -> None:
    """What a bundle's engines run, move and multiply, and whether they can run here. Needs no GPU."""
    from ropevit_export.inspect import report

    with quiet_libraries():
        found = report.inspect(bundle, gpu=gpu, largest=largest)
    if as_json:
        say(json.dumps(dataclasses.asdict(found), indent=2))
        return
    if found.graphs:
        _print_graphs(found.graphs)
    for engine in found.engines:
        _print_engine(engine)
    if found.sha256:
        say(f"SHA-256 of the manifest, for check --sha256: {found.sha256}")


def _print_graphs(graphs: Iterable[GraphReport]) -> None:
    table = _table("graph", "nodes", "products", "weights MB", "size", "batch", "GFLOP")
    for each in graphs:
        for size, flops in each.flops.items():
            weights = f"{sum(each.weights.values()) / 1e6:.1f}"
            cells = (each.path, each.nodes, _counts(each.products), weights, size, each.batch, f"{flops / 1e9:.2f}")
            add_row(table, *map(str, cells))
    show(table)


def _print_engine(engine: EngineReport) -> None:
    targets = f", for SM {', '.join(engine.targets)}" if engine.targets else ""
    say(f"{engine.path}: {engine.bytes / 1e6:.1f} MB, {engine.built_with}{targets}")
    for each in engine.obstacles:
        say(f"  can't run here: {each}")
    if not engine.obstacles and engine.runtime != "openvino":
        say("  runs here, by its header")
    if not engine.runs:
        return
    table = _table(
        "size", "batch", "kernels", "fused attentions", "formats", "read MB", "constants", "written", "in all", "GFLOP"
    )
    for run in engine.runs:
        moved = (run.traffic.read, run.traffic.constants, run.traffic.written, run.traffic.total)
        fused = f"{run.fused_attentions} of {run.attentions}"
        cells = (run.resolution, run.batch, run.kernels, fused, _counts(run.formats))
        add_row(table, *map(str, cells), *(f"{each / 1e6:.1f}" for each in moved), f"{run.flops / 1e9:.2f}")
    show(table)
    for run in engine.runs:
        _print_run(run)
    for remark in engine.remarks:
        say(f"  {remark}")


def _print_run(run: Run) -> None:
    say(f"  at {run.resolution}: {_counts(run.types)}")
    if run.not_fused:
        say(f"  attention is not fused in {', '.join(run.not_fused)}")
    if run.estimate:
        took, waiting = run.estimate.milliseconds, run.estimate.waiting
        say(f"  estimate for {run.estimate.gpu}: {took:.3f} ms, {waiting:.0%} of it waiting for memory")
    if not run.largest:
        return
    times = ("ms",) if run.estimate else ()
    table = _table("largest kernels", "type", "format", "MB", "GFLOP", *times, "ONNX nodes")
    for each in run.largest:
        cells = [each.name, each.type, each.format, f"{each.bytes / 1e6:.2f}", f"{each.flops / 1e9:.2f}"]
        cells += [f"{each.milliseconds:.4f}"] if each.milliseconds is not None else []
        add_row(table, *cells, " ".join(each.nodes))
    show(table)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items())


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns)
