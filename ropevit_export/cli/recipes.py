"""`--recipe`: a TOML file with the options of one deployment target, by their long names.

There is no second list of options: a recipe's keys are the main command's own, read and checked as if they had been
typed, and what is typed as well wins.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import click

from ropevit_export.errors import RecipeError, UsageError
from ropevit_export.machine import files

# Options of one call, which say nothing of what is built.
OF_THE_CALL = (
    "recipe",
    "matrix",
    "jobs",
    "ray",
    "out",
    "tune",
    "force",
    "cache",
    "as_json",
    "quiet",
    "verbose",
    "version",
)


def options(ctx: click.Context, recipe: Path | None) -> dict[str, Any]:
    """All options of the command line, with a recipe's for those that it does not say."""
    chosen = dict(ctx.params)
    if recipe is None:
        return chosen
    built_from = [each for each in ctx.command.params if each.name not in OF_THE_CALL]
    known = {max(each.opts, key=len).removeprefix("--"): each for each in built_from}
    for key, value in _read(recipe).items():
        if key not in known:
            closest = difflib.get_close_matches(key, known, n=3, cutoff=0.0)
            raise UsageError(f"{recipe}: a recipe has no option {key!r}; closest: {', '.join(closest)}.")
        param = known[key]
        try:
            converted = _converted(ctx, param, value)
        except (click.BadParameter, UsageError) as error:
            said = error.message if isinstance(error, click.BadParameter) else str(error)
            raise UsageError(f"{recipe}: {key}: {said}") from error
        typed = ctx.get_parameter_source(param.name or "") == click.core.ParameterSource.COMMANDLINE
        if param.name and not typed:
            chosen[param.name] = converted
    return chosen


def _read(recipe: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read(recipe, most=files.MB).decode())
    except OSError as error:
        raise RecipeError(f"no recipe at {recipe}: {error.strerror or error}; --recipe needs a TOML file.") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are of it
        raise UsageError(f"{recipe} is not TOML: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{recipe} is not a recipe: its lists lie too deep in one another.") from error


def _converted(ctx: click.Context, param: click.Parameter, value: object) -> Any:
    """What the command line would have made of it."""
    raw: object
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{value!r} is neither true nor false.")
        raw = value
    else:
        many = isinstance(value, list)
        if value == []:
            raise UsageError("an empty list chooses nothing: name one, or leave the line out.")
        texts = [_text(each) for each in (value if isinstance(value, list) else [value])]
        if many and not param.multiple:
            raise UsageError(f"{value!r} is a list, but only one can be given.")
        raw = texts if param.multiple else texts[0]
    cast = param.type_cast_value(ctx, raw)
    return param.callback(ctx, param, cast) if param.callback else cast


def _text(value: object) -> str:
    """A number is written as in TOML; anything else than numbers and strings no option takes."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{value!r} is neither a string nor a number.")
    return str(value)
