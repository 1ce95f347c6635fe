"""The chart of a benchmark of merges: how many times the floor each method takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergecore.diagnostics.merge_bench_report import MergeBenchReport


def draw_merges(report: MergeBenchReport, path: Path) -> None:
    """A bar per method, in multiples of the floor and without start-up; the line at 1 is the floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar([t.method for t in report.timings], [t.times_floor for t in report.timings], color="C0")
    axes.bar_label(bars, [f"{t.times_floor:.1f}" for t in report.timings])
    axes.axhline(1, color="black", linewidth=1.2)
    axes.text(1, 1, "floor ", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_ylabel("time beyond start-up / time of reading and writing alone")
    cache = "read from disk" if report.cold else "inputs in the page cache"
    axes.set_title(f"mergecore merge, {report.environment.processor}, {report.workers} workers, {cache}")
    figure.savefig(path, dpi=150)
