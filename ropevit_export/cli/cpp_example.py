"""`cpp-example DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say


@cli.command("cpp-example")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def cpp_example(folder: Path) -> None:
    """Write a C++ project that runs a bundle with the installed library (docs/cpp.md)."""
    from ropevit_export.verbs import cpp_example as example

    for path in example.write(folder):
        say(str(path))
