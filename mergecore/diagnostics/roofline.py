"""The roofline chart: how near each operation comes to what the memory can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergecore.diagnostics.kernel_bench import BenchReport

MARKERS = {"bf16": "o", "fp16": "^", "fp32": "s", "e4m3": "v", "e5m2": "D"}


def draw_roofline(report: BenchReport, path: Path) -> None:
    """Bytes per second of each timing against its arithmetic per byte; the roof is the fastest plain copy.

    An operation bound by memory lies at the roof, whatever it computes. Hollow: the same written by hand.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    roof = max(t.copy_bytes_per_s for t in report.timings) / 1e9
    axes.axhline(roof, color="black", linewidth=1.2)
    axes.text(1, roof, f"plain copy, {roof:.3g} GB/s ", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    _draw_points(axes, report)
    axes.set_yscale("log")
    axes.set_ylim(top=2 * roof)
    axes.set_xlim(left=-0.2)
    axes.grid(alpha=0.3)
    axes.set_xlabel("arithmetic per byte moved (operations / byte)")
    axes.set_ylabel("least possible bytes / time (GB/s)")
    axes.set_title(f"{report.backend}: {_device_name(report)}")
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=150)


def _draw_points(axes: Any, report: BenchReport) -> None:
    """A colour per operation, a marker per dtype, and a legend of them."""
    names = list(dict.fromkeys(t.operation for t in report.timings))
    colours = {name: f"C{i % 10}" if i < 10 else ("black", "lightgreen")[i % 2] for i, name in enumerate(names)}
    for t in report.timings:
        style = {"marker": MARKERS[t.dtype], "color": colours[t.operation], "linestyle": "none"}
        axes.plot(t.steps_per_byte, t.bytes_per_s / 1e9, **style)
        if t.by_hand_seconds is not None:
            axes.plot(t.steps_per_byte, t.bytes_moved / t.by_hand_seconds / 1e9, markerfacecolor="none", **style)
    for name in names:
        axes.plot([], [], "o", color=colours[name], label=name)
    for dtype in dict.fromkeys(t.dtype for t in report.timings):
        axes.plot([], [], MARKERS[dtype], color="grey", label=dtype)
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="by hand, in torch")


def _device_name(report: BenchReport) -> str:
    name, gpus = report.backend.device, report.environment.gpus
    if name.startswith("cuda") and gpus:
        return gpus[int(name.partition(":")[2] or 0)].name
    return f"{report.environment.processor}, one thread"
