"""`doctor`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import add_row, progress_bar, say, show
from ropevit_export.machine.process import quiet_libraries

if TYPE_CHECKING:
    from ropevit_export.verbs.doctor import Diagnosis


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def doctor(as_json: bool, quiet: bool) -> None:
    """Try everything that a build or a run could use here; says of the rest why not, and what to install.

    Exit code 0 wherever a graph can be exported.
    """
    from ropevit_export.verbs import doctor as examining

    with quiet_libraries(), progress_bar(len(examining.trials()), quiet=quiet) as progress:
        found = examining.diagnose(progress)
    if as_json:
        say(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print_diagnosis(found)
    found.require_export()


def _print_diagnosis(found: Diagnosis) -> None:
    from rich.table import Table

    from ropevit_export.verbs import doctor as examining

    for name, value in examining.summary(found.machine):
        say(f"{name:13} {value}")
    gpus = found.machine["gpus"]
    assert isinstance(gpus, list)
    for each in gpus:
        say(
            f"{'gpu':13} {each['name']}, compute capability {each['compute_cap']}, driver {each['driver_version']}, "
            f"{each['memory_total_mb']} MB"
        )
    if found.no_gpu:
        say(f"{'gpu':13} none: {found.no_gpu}")
    packages = Table("package", "version", "serves", "to get it")
    for package in found.packages:
        names = ", ".join(package.versions) or package.wanted.names[0]
        add_row(packages, names, ", ".join(package.versions.values()) or "-", package.wanted.serves, package.remedy)
    show(packages)
    backends = Table("backend", "does", "here", "what it is, or why not")
    for backend in found.backends:
        add_row(backends, backend.name, backend.does, "yes" if backend.usable else "no", backend.says)
    show(backends)
