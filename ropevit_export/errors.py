"""Errors that a user can act on: what was given, what was needed, what to do.

`exit_code` is the command line's: 1 a stage failed, 2 the command line itself is wrong, 3 out of tolerance.
What depends on the machine (a missing file, an existing folder) is a failed stage, not a usage error.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RopevitError(Exception):
    """Base of everything this package raises on purpose. Its text is one line that a terminal can be given, whatever
    names out of a stranger's file are in it.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().splitlines()))


class UsageError(RopevitError):
    """The request can't be right on any machine: unknown model, size off the grid, options that exclude each other."""

    exit_code = 2


class RecipeError(RopevitError):
    """A recipe's file can't be read."""


class CheckpointError(RopevitError):
    """Weights can't be had, read, or don't belong to the model."""


class HubUnreachableError(CheckpointError):
    """No connection to the weights' hub, and nothing in its local cache."""


class HubRefusedError(CheckpointError):
    """The weights' hub wants a licence accepted, or a token that may read them."""


class TraceError(RopevitError):
    """The model could not be turned into a graph."""


class PassError(RopevitError):
    """A graph pass can't do its work, or left a graph that is not legal."""


class BackendError(RopevitError):
    """A runtime is missing, can't serve the request, or failed to build or run."""


class UnreadableError(BackendError):
    """A runtime that works here can't read a file that every machine's can."""


class InputError(RopevitError):
    """A loaded bundle can't take these images."""


class ParityError(RopevitError):
    """An artifact's outputs are not the reference's."""

    exit_code = 3


class BundleError(RopevitError):
    """The bundle's folder can't be written, or is not what its manifest says."""


class MatrixError(RopevitError):
    """Some bundles of a matrix were not built."""


# What others say goes into one line of ours.
_LIMIT = 300


def first_line(said: object) -> str:
    """The first line that is not empty of what a library raised or a program printed: the rest is a trace."""
    return _lines(said)[0][:_LIMIT]


def last_line(said: object) -> str:
    """The last line that is not empty: where the reason stands below the places that it came through."""
    return _lines(said)[-1][:_LIMIT]


def with_kind(error: Exception) -> str:
    """An error that nobody foresaw, whole, on one line, with its class: a KeyError's own text is only the key."""
    return f"{type(error).__name__}: {' '.join(_lines(error))[:_LIMIT]}"


def first_fault(error: ValidationError) -> str:
    """Of a file that pydantic refuses: the first field that is wrong, and why."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, found['loc'])) or 'the file'}: {found['msg']}"


def printable(text: str) -> str:
    """A text with what would move a terminal's cursor, change its title or turn its writing round spelled out: names
    in files are their authors'. Lines stay lines.
    """
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" or not _is_control(each) else _spelled(each) for each in text)


def _is_control(character: str) -> bool:
    """Control and format characters, separators of lines, and surrogates, which stand for bytes that are no UTF-8."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _lines(said: object) -> list[str]:
    return [line.strip() for line in str(said).splitlines() if line.strip()] or ["no reason given"]
