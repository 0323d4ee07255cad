"""What all verbs share with a terminal: progress and tables. Nothing here imports torch or a runtime."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ropevit_export.machine.process import Interrupted

if TYPE_CHECKING:
    from rich.table import Table


@contextlib.contextmanager
def progress_bar(stages: int | None, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, one line a stage elsewhere; both on stderr. `stages`: None where nobody knows how many."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    log = logging.getLogger("ropevit_export")
    if not console.is_terminal:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    if not quiet:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
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
                bar.update(task, description=stage, completed=min(next(done), stages or 0))

            yield advance
    finally:
        log.removeHandler(handler)


def show(table: Table, width: int = 140) -> None:
    """A table on stdout; `width`: columns where stdout is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)
