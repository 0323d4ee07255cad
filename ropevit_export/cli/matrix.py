"""`--matrix`: every model, size and recipe that the command line names, and one table of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ropevit_export.cli import recipes
from ropevit_export.cli.terminal import add_row, say, show
from ropevit_export.errors import MatrixError, ParityError, UsageError
from ropevit_export.machine.process import Interrupted, quiet_libraries
from ropevit_export.request import Request
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.verbs.matrix import Cell, Event, Outcome

RequestOf = Callable[[Mapping[str, Any]], Request]


def build(ctx: click.Context, request_of: RequestOf) -> None:
    """Build all bundles; raises MatrixError, or ParityError where one is out of tolerance, once the table is out."""
    from ropevit_export.verbs import matrix

    given = ctx.params
    cells = _cells(ctx, request_of)
    make = matrix.build_on_ray if given["ray"] else matrix.build
    jobs = {} if given["jobs"] is None else {"jobs": given["jobs"]}
    outcomes: dict[Path, Outcome] = {}
    with (
        _display(len(cells), quiet=given["quiet"]) as tell,
        quiet_libraries(),
        contextlib.closing(make(cells, force=given["force"], **jobs)) as events,
    ):
        try:
            for cell, said in events:
                if Interrupted.arrived:
                    raise Interrupted
                if not isinstance(said, str):
                    outcomes[cell.out] = said
                tell((cell, said))
        except (Interrupted, Exception):  # where a signal arrives inside Ray, it is an error of Ray's
            if not Interrupted.arrived:
                raise
            there = sum(each.result != "failed" for each in outcomes.values())
            raise Interrupted(
                f"interrupted; {there} of {len(cells)} bundles are there: begin again to go on."
            ) from None
    rows = [(cell, outcomes[cell.out]) for cell in cells]
    if given["as_json"]:
        say(json.dumps({"bundles": [_row(*each) for each in rows]}))
    else:
        _print_table(rows)
    failed = [outcome for _, outcome in rows if outcome.result == "failed"]
    if failed:
        outside = any(each.exit_code == ParityError.exit_code for each in failed)
        message = (
            f"{len(failed)} of {len(rows)} bundles were not built{', for parity among others' if outside else ''}."
        )
        raise (ParityError if outside else MatrixError)(message)


def _cells(ctx: click.Context, request_of: RequestOf) -> list[Cell]:
    """Recipe by recipe, model by model, a bundle a size. What can't be right on any machine ends it here."""
    from ropevit_export.planning import DEFAULT_FOLDER
    from ropevit_export.verbs import matrix

    folder = (ctx.params["out"] or DEFAULT_FOLDER).expanduser()
    cells = []
    for recipe in ctx.params["recipe"] or (None,):
        options = recipes.options(ctx, recipe)
        sizes: list[tuple[Resolution, ...]] = [(size,) for size in options["res"]]
        for model in options["model"] or ("",):
            for size in sizes or [()]:
                try:
                    request = request_of(options | {"model": model, "res": size})
                except UsageError as error:
                    raise UsageError(" ".join([_label(model, size, recipe), str(error)])) from error
                cells.append(matrix.Cell.of(request, recipe.stem if recipe else "", folder, ctx.params["cache"]))
    matrix.require_distinct(cells)
    return cells


def _label(model: str, size: Sequence[object], recipe: Path | None) -> str:
    named = [model, *map(str, size), *([recipe.name] if recipe else [])]
    return f"{', '.join(part for part in named if part)}:"


@contextlib.contextmanager
def _display(total: int, *, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """On a terminal a bar over all bundles and a line for each that is being built; elsewhere a line a bundle."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ropevit_export.planning import stage_count

    console = Console(stderr=True, quiet=quiet)
    shown = console.is_terminal and not quiet
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown) as bar:
        whole, tasks, ended = bar.add_task("matrix", total=total), {}, 0

        def tell(event: Event) -> None:
            nonlocal ended
            cell, said = event
            if isinstance(said, str):
                if cell.out not in tasks:
                    tasks[cell.out] = bar.add_task("", total=stage_count(cell.request) + 1)
                bar.update(tasks[cell.out], description=f"{cell.out.name}: {said}", advance=1)
                return
            ended += 1
            bar.update(whole, completed=ended)
            if cell.out in tasks:
                bar.remove_task(tasks.pop(cell.out))
            line = f"{ended} of {total}  {cell.out.name}: {_result(said)}, {said.seconds:.1f} s"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield tell


def _result(outcome: Outcome) -> str:
    trained = "" if outcome.trained else ", UNTRAINED"
    return f"{outcome.result}{trained}" + (f": {outcome.reason}" if outcome.reason else "")


def _row(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    size = cell.request.resolutions[0]
    named = {"model": cell.request.model.name, "resolution": [size.height, size.width], "recipe": cell.recipe or None}
    return named | dataclasses.asdict(outcome)


def _print_table(rows: Sequence[tuple[Cell, Outcome]]) -> None:
    from rich.table import Table

    table = Table("model", "size", "recipe", "holds", "MB", "s", "of limit", "result")
    for cell, outcome in rows:
        add_row(
            table,
            cell.request.model.short,
            str(cell.request.resolutions[0]),
            cell.recipe,
            ", ".join(outcome.artifacts),
            "" if outcome.bytes is None else f"{outcome.bytes / 1e6:.1f}",
            f"{outcome.seconds:.1f}",
            "" if outcome.worst is None else f"{outcome.worst:.1%}",
            _result(outcome),
        )
    show(table)
