"""A benchmark as a picture: every round of every contender, and throughput where there are several batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropevit_export.errors import BackendError, UsageError

if TYPE_CHECKING:
    from ropevit_export.verbs.bench import Benchmark, Timing

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which people with any colour vision tell apart; the first contender's is the first.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
_ROW = 0.42  # inches
_WIDE = 8  # times the fastest: from here on an axis that begins at 0 shows the slowest only


def check(path: Path) -> None:
    """Raise before minutes of measuring where the picture could not be drawn."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path} is no picture: its name must end in {', '.join(FORMATS)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError(f"matplotlib can't be imported ({error}): pip install 'ropevit-export[plot]'") from error


def draw(result: Benchmark, path: Path) -> None:
    """Write the picture; the kind of file follows from the name."""
    import matplotlib
    from matplotlib.figure import Figure

    check(path)
    batches = list(dict.fromkeys(each.batch for each in result.timings))
    names = list(dict.fromkeys(each.contender for each in result.timings))
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    size, several = result.resolution, len(batches) > 1
    notes = _notes(result)
    height = len(batches) * (len(names) * _ROW + 0.9) + 0.6 + 0.16 * len(notes)
    # The same result gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "ropevit-export", "font.size": 9}):
        figure = Figure(figsize=(13.5 if several else 9.5, max(height, 3.4 if several else 0)), layout="constrained")
        figure.suptitle(
            f"{size.height}x{size.width} pixels, {result.rounds} rounds in turn, ratios to {names[0]}",
            x=0.01, ha="left", fontweight="bold",
        )  # fmt: skip
        panels, right = _panels(figure, len(batches), notes)
        for axes, batch in zip(panels, batches, strict=True):
            _latency(axes, [each for each in result.timings if each.batch == batch], colours, several)
        if right is not None:
            _throughput(right, result.timings, colours)
        made = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=160, metadata=made)


def _panels(figure: Any, batches: int, notes: Sequence[str]) -> tuple[list[Any], Any]:
    """Axes for the latencies of each batch, one below the other, and beside them, for several, those of throughput."""
    body, foot = figure.subfigures(
        2, 1, height_ratios=(1, 0.16 * len(notes) / (figure.get_size_inches()[1] - 1) + 0.02)
    )
    for index, note in enumerate(notes):
        foot.text(0.01, 1 - (index + 0.5) / len(notes), note, fontsize=7, color="0.35", va="center")
    grid = body.add_gridspec(batches, 2 if batches > 1 else 1, width_ratios=(1.6, 1) if batches > 1 else (1,))
    right = body.add_subplot(grid[:, 1]) if batches > 1 else None
    return [body.add_subplot(grid[row, 0]) for row in range(batches)], right


def _latency(axes: Any, timings: Sequence[Timing], colours: dict[str, str], several: bool) -> None:
    """A row a contender, the fastest on top: every round as a dot, a box around the middle half, and its figures."""
    ordered = sorted(timings, key=lambda each: each.summary()["p50_ms"])
    limit = 1.25 * max(float(np.percentile(each.milliseconds, 90)) for each in ordered)
    scatter = np.random.default_rng(0)
    for row, each in enumerate(ordered):
        times, colour, s = np.array(each.milliseconds), colours[each.contender], each.summary()
        shown = times[times <= limit]
        axes.scatter(shown, row + scatter.uniform(-0.16, 0.16, len(shown)), s=9, color=colour, alpha=0.45, linewidths=0)
        axes.boxplot(
            times, positions=[row], orientation="horizontal", widths=0.5, showfliers=False, whis=(10, 90),
            medianprops={"color": colour, "linewidth": 2}, boxprops={"color": colour},
            whiskerprops={"color": colour}, capprops={"color": colour},
        )  # fmt: skip
        text = f"{s['p50_ms']:.3g} ms   {s['ratio']:.2f}× ({s['ratio_q25']:.2f}–{s['ratio_q75']:.2f})"
        beyond = len(times) - len(shown)
        axes.text(1.01, row, text + (f"   {beyond} beyond →" if beyond else ""), va="center", fontsize=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yticks(range(len(ordered)), [each.contender for each in ordered])
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    batch = f"batch {ordered[0].batch}: " if several else ""
    if ordered[-1].summary()["p50_ms"] > _WIDE * ordered[0].summary()["p50_ms"]:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(min(each.milliseconds) for each in ordered), limit)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"{batch}milliseconds, logarithmic, less is better")
    else:
        axes.set_xlim(0, limit)
        axes.set_xlabel(f"{batch}milliseconds, less is better")
    axes.set_title("median   of the first's (middle half)", fontsize=7, color="0.35", loc="right", x=1.01, ha="left")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _throughput(axes: Any, timings: Sequence[Timing], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        mine = sorted((each.batch, each.summary()["images_per_second"]) for each in timings if each.contender == name)
        axes.plot(*zip(*mine, strict=True), marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    batches = sorted({each.batch for each in timings})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_xlabel("batch size")
    axes.set_ylabel("images a second, more is better")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _notes(result: Benchmark) -> list[str]:
    """The machine and, of every contender, what it ran on."""
    machine = result.machine
    processor = f"{machine.get('model_name') or machine.get('processor')}, {machine.get('cores')} cores"
    gpus = machine.get("gpus")
    cards = [f"{each['name']}, driver {each['driver_version']}" for each in gpus] if isinstance(gpus, list) else []
    by_name = {each.contender: each for each in result.timings}
    return [
        "; ".join((processor, *cards)),
        *(f"{name}: {each.runtime}, {each.transfers_in_words}" for name, each in by_name.items()),
        "Box: middle half; whiskers: p10 and p90; dots: every round. Without loading and preprocessing.",
    ]
