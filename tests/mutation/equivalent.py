"""Faults that change nothing which anybody could notice, each with the reason. Found again by the line's text."""

from __future__ import annotations

# (file, text of the line, what is planted there): why.
EQUIVALENT: dict[tuple[str, str, str], str] = {}
