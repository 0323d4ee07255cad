"""Faults that change nothing which anybody could notice, each with the reason."""

from __future__ import annotations

# `Fault.key`: file, text of the line, where in it, what is planted there.
EQUIVALENT: dict[tuple[str, str, int, str], str] = {
    ("ropevit_export/trace/attention.py", "if cos is not None and sin is not None:", 19, "and → or"): (
        "both are given or neither: a block's tables are a pair"
    ),
    (
        "ropevit_export/passes/quantize/ranges.py",
        'for kind in ("ReduceMin", "ReduceMax"):',
        13,
        '"ReduceMin", "ReduceMax" → "ReduceMax", "ReduceMin"',
    ): "the session's results are found by their names, not by their order",
    ("ropevit_export/passes/quantize/engines.py", "super().__init__()", 0, "super().__init__() → pass"): (
        "onnx-ir's class has no __init__"
    ),
    (
        "ropevit_export/passes/attention.py",
        "rows, back = ([0, 0, heads * width], [0, 0, heads, width]) if own == 1 else ([0, -1, width], [0, -1, heads, "
        "width])",
        18,
        "0 → (-1)",
    ): "the tokens' extent is taken from the input or is the one left over: the same number",
    (
        "ropevit_export/passes/attention.py",
        "if scores is None or mixed is None or back is None or last is None or _order(back) != [0, 2, 1, 3]:",
        35,
        "or → and",
    ): "where there is no product, nothing reads it: what is behind it is None too",
    ("ropevit_export/trace/swin.py", "region = region_of[0][:, None] * 2 + region_of[1]", 35, "+ → -"): (
        "four regions have four numbers either way"
    ),
    ("ropevit_export/trace/positions.py", "reach = torch.arange(-2, side + 2)", 32, "2 → 3"): (
        "the kernel is zero three taps beyond the edge"
    ),
    (
        "ropevit_export/passes/verify.py",
        "hash(tensor.numpy().reshape(-1)[:: 1 + tensor.size // 4096].tobytes()),",
        35,
        "1 → 0",
    ): "how many numbers are hashed; of equal hashes the whole tensors are compared",
    (
        "cpp/src/artifact.cpp",
        "Buffer buffer{entry.name, entry.type, shape_of(entry, artifact, size, count), nullptr, 0};",
        87,
        "0 → 1",
    ): "the next line sets it",
}
