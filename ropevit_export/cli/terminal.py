"""What all verbs share with a terminal: progress and tables. Nothing here imports torch or a runtime."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from ropevit_export.errors import UsageError, printable
from ropevit_export.machine.process import Interrupted

if TYPE_CHECKING:
    from rich.table import Table

_SELDOM = 30.0  # seconds between lines of progress where there is no terminal


_VERBOSE = "ropevit_export.verbose"


def verbose_option() -> click.Option:
    """`-v`, of every command."""

    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[_VERBOSE] = value

    return click.Option(
        ("--verbose", "-v"), is_flag=True, expose_value=False, callback=keep,
        help="Say on stderr what each pass does and what libraries warn of; of an error where it comes from.",
    )  # fmt: skip


def is_verbose() -> bool:
    """Whether the command that runs now was asked to be."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and ctx.meta.get(_VERBOSE))


@contextlib.contextmanager
def progress_bar(stages: int | None, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, one line a stage elsewhere; both on stderr. `stages`: None where nobody knows how many."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    if quiet and is_verbose():
        raise UsageError("--quiet and --verbose exclude each other: leave one out.")
    console = Console(stderr=True, quiet=quiet)
    log = logging.getLogger("ropevit_export")
    if quiet or not console.is_terminal:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    handler.addFilter(_Printable())
    level = logging.DEBUG if is_verbose() else logging.INFO
    handler.setLevel(logging.WARNING if quiet else level)
    log.addHandler(handler)
    log.setLevel(level)
    if is_verbose():
        warnings.simplefilter("default")  # until `quiet_libraries` ends
    try:
        with Progress(
            SpinnerColumn(), *Progress.get_default_columns()[:2], TimeElapsedColumn(), console=console, transient=True,
            disable=quiet or not console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task("", total=stages)
            done = itertools.count()

            def advance(stage: str) -> None:
                if Interrupted.arrived:
                    raise Interrupted
                description = escape(printable(stage))
                bar.update(task, description=description, completed=min(next(done), stages or 0))

            yield advance
    finally:
        log.removeHandler(handler)


def say(text: str, *, err: bool = False) -> None:
    """A line on stdout or stderr."""
    click.echo(printable(text), err=err)


def add_row(table: Table, *cells: str) -> None:
    """Cells as they are: square brackets in a name are no markup."""
    from rich.text import Text

    table.add_row(*(Text(printable(each)) for each in cells))


@contextlib.contextmanager
def counted(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress of a long count, told (done, of): on a terminal a bar with rate and time left, elsewhere a line now and
    then; both on stderr.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    begun: list[tuple[float, int]] = []
    said = time.monotonic()
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None, rate="")

        def tell(done: int, count: int) -> None:
            nonlocal said
            if Interrupted.arrived:
                raise Interrupted
            now = time.monotonic()
            if not begun:  # what an earlier run has done is no speed of this one
                begun.append((now, done))
            rate = (done - begun[0][1]) / (now - begun[0][0]) if now > begun[0][0] else 0.0
            bar.update(task, completed=done, total=count, rate=f"{rate:.1f}/s" if rate else "")
            if not quiet and not console.is_terminal and now - said >= _SELDOM:
                said = now
                left = f", {(count - done) / rate:.0f} s left" if rate else ""
                print(f"{done} of {count} {what}, {rate:.1f} a second{left}", file=sys.stderr, flush=True)

        yield tell


def show(table: Table, width: int = 140) -> None:
    """A table on stdout; `width`: columns where stdout is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)


class _Printable(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True
