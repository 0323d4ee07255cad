"""The command line: a thin shell over the package, a module a verb. Nothing here imports torch or a runtime."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ropevit_export.cli import bench, check, cpp_example, doctor, evaluate, inspect, models, report, tune  # noqa: F401 - they register verbs
from ropevit_export.cli.export import cli
from ropevit_export.errors import RopevitError
from ropevit_export.machine.process import SIGNALS, Interrupted, interrupt


def main() -> NoReturn:
    """Console entry point."""
    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: huge pages for weights, half the page faults
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # closed, or full
            stream.flush()
    os._exit(code)  # taking torch and TensorRT apart again takes two seconds and changes nothing


def run(arguments: Sequence[str]) -> int:
    """The exit code; an error is one line on stderr and the code of its class."""
    try:
        cli.main(list(arguments), prog_name="ropevit-export", standalone_mode=False)
    except click.ClickException as error:  # usage errors among them, with exit code 2
        return _fail(error.format_message(), error.exit_code)
    except RopevitError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, Interrupted) as error:
        return _fail(str(error) or "interrupted, nothing was written.", 130)
    except BrokenPipeError:  # the reader of our stdout has left
        return 1
    except OSError as error:
        return _fail(f"can't write the result: {error.strerror or error}.", 1)
    except Exception as error:  # a bug of ours: still one line, and a traceback for whoever asks for it
        if os.environ.get("ROPEVIT_TRACEBACK"):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}. Please report it, with ROPEVIT_TRACEBACK=1 set.", 1)
    return 0


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
