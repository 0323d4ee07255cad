"""A single fault: one place of one file in other words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """`source[start:end]`, in bytes, is `old`; planted, it is `new`.

    line, column: from 1. text: the line's, without its indentation. within: where in it, from 0. first, last: lines of
    the statement that it is in. function: first and last line of the function's body, None outside of any.
    """

    file: str
    start: int
    end: int
    line: int
    column: int
    text: str
    within: int
    old: str
    new: str
    first: int
    last: int
    function: tuple[int, int] | None = None

    @property
    def change(self) -> str:
        return f"{_short(self.old)} → {_short(self.new)}"

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The same wherever the line is: its file, its text, from which character of that on, and the change."""
        return self.file, self.text, self.within, self.change

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.change}"

    def planted(self, source: str) -> str:
        data = source.encode()
        assert data[self.start : self.end].decode() == self.old
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else f"{line[:49]}…"
