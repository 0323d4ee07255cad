"""`serve BUNDLE…`."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from ropevit_export.cli.export import cli
from ropevit_export.cli.options import BACKENDS
from ropevit_export.cli.terminal import say
from ropevit_export.errors import UsageError
from ropevit_export.machine.process import Interrupted, quiet_libraries


@cli.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Whose requests are heard; 0.0.0.0: everyone's.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Of every bundle.")
@click.option("--gpus", type=click.FloatRange(0), default=0, show_default=True, help="GPUs of every replica.")
@click.option(
    "--backend", type=click.Choice(BACKENDS), default="onnxruntime", show_default=True, help="What runs them."
)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Requests run as one, at most.")
@click.option(
    "--wait", type=click.FloatRange(0, 60), default=0.005, show_default=True, metavar="SECONDS",
    help="That a request may wait for others to make a batch.",
)  # fmt: skip
def serve(
    bundles: tuple[str, ...], host: str, port: int, replicas: int, gpus: float, backend: str, batch: int, wait: float
) -> None:
    """Answer pictures over HTTP until Ctrl-C, by Ray Serve: `curl --data-binary @cat.jpg http://HOST:PORT/NAME`."""
    named = names_of(bundles)
    with quiet_libraries():
        from ropevit_export import serve_ray

        options = serve_ray.Options(backend=backend, wait=wait, batch=batch)
        try:
            with serve_ray.running(named, options, host=host, port=port, replicas=replicas, gpus=gpus):
                for name in named:
                    say(f"http://{host}:{port}/{name}: {named[name]}", err=True)
                say("POST a picture's file to one of them; Ctrl-C ends it.", err=True)
                threading.Event().wait()
        except Interrupted:
            say("stopped", err=True)


def names_of(bundles: tuple[str, ...]) -> dict[str, Path]:
    """Folders by the name that they are asked for by: the one given, else the folder's."""
    named: dict[str, Path] = {}
    for given in bundles:
        name, equals, path = given.partition("=")
        name, folder = (name, Path(path)) if equals and "/" not in name else (Path(given).resolve().name, Path(given))
        if name in named:
            raise UsageError(f"two bundles are called {name}: call one otherwise, such as other={folder}.")
        if not name.isprintable() or not name or set(name) & set("/?#% "):
            raise UsageError(f"{name!r} can't be a part of an address: give another name, such as model={folder}.")
        named[name] = folder
    return named
