"""`completion bash|zsh|fish`."""

from __future__ import annotations

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.terminal import say
from ropevit_export.errors import BackendError

PROGRAM = "ropevit-export"
# Where click's scripts put the question that they ask of the program.
VARIABLE = "_ROPEVIT_EXPORT_COMPLETE"


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs, options and names of models.

    \b
    bash: ropevit-export completion bash > ~/.local/share/bash-completion/completions/ropevit-export
    zsh:  ropevit-export completion zsh > "${fpath[1]}/_ropevit-export"
    fish: ropevit-export completion fish > ~/.config/fish/completions/ropevit-export.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    try:
        say(found(cli, {}, PROGRAM, VARIABLE).source())
    except RuntimeError as error:  # click looks which bash this is
        raise BackendError(f"{shell}: {error}") from error
