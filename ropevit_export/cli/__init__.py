"""The command line: a thin shell over the package, a module a verb. Nothing here imports torch or a runtime."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator, Sequence

import click

from ropevit_export.cli import (  # noqa: F401 - they register verbs
    bench,
    check,
    completion,
    cpp_example,
    deepstream,
    doctor,
    evaluate,
    inspect,
    models,
    predict,
    report,
    serve,
    terminal,
    triton,
    tune,
)
from ropevit_export.cli.completion import PROGRAM
from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say
from ropevit_export.errors import RopevitError
from ropevit_export.machine.process import Interrupted

for _command in (cli, *cli.commands.values()):
    _command.params.append(terminal.verbose_option())


def run(arguments: Sequence[str]) -> int:
    """The exit code; an error is one line on stderr and the code of its class."""
    Interrupted.written = None
    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    try:
        with _traced() if verbose else contextlib.nullcontext():
            return _run(arguments)
    except click.ClickException as error:  # usage errors among them, with exit code 2
        return _fail(error.format_message(), error.exit_code)
    except RopevitError as error:
        return _fail(str(error), error.exit_code)
    except (click.Abort, Interrupted) as error:
        return _fail(str(error) or f"interrupted, {Interrupted.standing()}.", 130)
    except SystemExit:  # click's, where the reader of our stdout has left, and most do on purpose
        return _fail(f"nobody reads the result, but {Interrupted.standing()}.", 1) if Interrupted.written else 1
    except OSError as error:
        return _fail(_unwritten(error), 1)
    except MemoryError:
        return _fail(_short_of_memory(), 1)
    except Exception as error:  # a bug of ours: still one line, and a traceback for whoever asks for it
        if os.environ.get("ROPEVIT_TRACEBACK"):
            raise
        if _says_memory(error):
            return _fail(_short_of_memory(), 1)
        return _fail(f"unexpected {type(error).__name__}: {error}. Please report it, with ROPEVIT_TRACEBACK=1 set.", 1)


def _run(arguments: Sequence[str]) -> int:
    try:
        cli.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as ended:
        if completion.VARIABLE not in os.environ:
            raise
        return int(ended.code or 0)  # the shell has been told what could come next
    return 0


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Where an error comes from, before the line that says what it is."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        raise


def _unwritten(error: OSError) -> str:
    """Of a file that has a name, or of stdout."""
    what = f"{error.filename} can't be read or written" if error.filename else "can't write the result"
    standing = f"; {Interrupted.standing()}" if Interrupted.written else ""
    return f"{what}: {error.strerror or error}{standing}."


def _short_of_memory() -> str:
    return (
        f"memory is used up, {Interrupted.standing()}: this machine, or a limit on it (`ulimit -v`), has too little "
        "for what was asked."
    )


def _says_memory(error: Exception) -> bool:
    """torch, the runtimes and the loader of libraries have no class for it."""
    words = ("can't allocate", "annot allocate memory", "bad_alloc", "failed to map segment")
    return isinstance(error, RuntimeError | ImportError) and any(each in str(error) for each in words)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr is full, too
        say(f"error: {' '.join(message.split())}", err=True)
    return code
