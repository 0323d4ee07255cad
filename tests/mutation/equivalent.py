"""Faults that change nothing which anybody could notice, each with the reason. Found again by the line's text."""

from __future__ import annotations

# (file, text of the line, what is planted there): why.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("ropevit_export/trace/attention.py", "if cos is not None and sin is not None:", "and → or"): (
        "both are given or neither: a block's tables are a pair"
    ),
    (
        "ropevit_export/passes/quantize/ranges.py",
        'for kind in ("ReduceMin", "ReduceMax"):',
        '"ReduceMin", "ReduceMax" → "ReduceMax", "ReduceMin"',
    ): "the session's results are found by their names, not by their order",
}
