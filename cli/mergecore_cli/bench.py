"""`mergecore bench`: how fast this machine is at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.bench_merge import merge
from mergecore_cli.doctor import environment_rows
from mergecore_cli.options import Quiet

if TYPE_CHECKING:
    from mergecore.diagnostics.kernel_bench import BenchReport

bench = typer.Typer(no_args_is_help=True)
bench.command("merge")(merge)


@bench.callback()
def about() -> None:
    """Measure how fast this machine is."""


@bench.command()
def kernels(
    op: Annotated[str, typer.Option(help="Operations to time.", metavar="OP,...", show_default="all")] = "",
    dtype: Annotated[
        str, typer.Option(help="bf16, fp16, fp32, e4m3, e5m2.", metavar="DTYPE,...", show_default="bf16,fp32")
    ] = "",
    size: Annotated[
        str,
        typer.Option(
            help="small, q_proj, down_proj, embedding, experts, large_experts.",
            metavar="SIZE,...",
            show_default="what suits the device",
        ),
    ] = "",
    models: Annotated[str, typer.Option(help="Numbers of models.", metavar="M,...", show_default="2,3")] = "",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, or auto.")] = "auto",
    backend: Annotated[str, typer.Option(help="torch, triton, or auto: triton on a GPU.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers for a program.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline chart.", metavar="FILE.png|FILE.svg")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few runs of few cases: half a minute on a CPU.")] = False,
    quiet: Quiet = False,
) -> None:
    """Time the merge operations on tensors of real sizes, and check their results.

    GB/s count every input read once and the output written once. Beside them: the share of a plain copy's GB/s, and the
    same operation written by hand in torch.
    """
    from mergecore.diagnostics.choices import require_plotting
    from mergecore.diagnostics.kernel_bench import time_kernels
    from mergecore.diagnostics.roofline import draw_roofline

    if plot is not None:
        require_plotting(plot)
    report = time_kernels(
        operations=_names(op),
        dtypes=_names(dtype),
        sizes=_names(size),
        models=_numbers(models),
        device=device,
        backend=backend,
        quick=quick,
        tell=console.talk,
    )
    if json:
        console.data_json(_facts(report))
    else:
        _print(report)
    for line in report.skipped:
        console.warn(f"left out {line}")
    if plot is not None and report.timings:
        draw_roofline(report, plot)
        console.talk(f"Wrote {plot}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    from mergecore.errors import ConfigError

    wrong = [name for name in _names(text) if not name.isdecimal()]
    if wrong:
        raise ConfigError.at("--models", f"`{wrong[0]}` is not a number of models", "write it like 2,3")
    return [int(name) for name in _names(text)]


def _print(report: BenchReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    machine = environment_rows(report.environment)
    on = machine.get(report.backend.device, machine.get(f"{report.backend.device}:0", machine["processor"]))
    console.data(f"{report.backend} ({report.backend.why}): {escape(on)}")
    console.data(f"torch {escape(machine['torch'])}; triton {machine['triton']}; medians of {report.rounds} runs\n")
    table = Table(box=None, pad_edge=False)
    for column in ("operation", "dtype", "M", "size"):
        table.add_column(column)
    for column in ("ms", "ns/element", "GB/s", "of a copy", "by hand, ms", "faster"):
        table.add_column(column, justify="right")
    for t in report.timings:
        by_hand = "" if t.by_hand_seconds is None else f"{t.by_hand_seconds * 1e3:.3g}"
        faster = "" if t.speedup is None else f"{t.speedup:.1f}x"
        table.add_row(
            t.operation, t.dtype, str(t.models), t.size, f"{t.seconds * 1e3:.3g}", f"{t.ns_per_element:.3g}",
            f"{t.bytes_per_s / 1e9:.3g}", f"{t.share_of_copy:.0%}", by_hand, faster,
        )  # fmt: skip
    console.data_table(table)


def _facts(report: BenchReport) -> dict[str, Any]:
    """The fields of the report, and with each timing what follows from it."""
    from dataclasses import asdict

    timings = [
        {
            **asdict(t),
            "bytes_per_s": t.bytes_per_s,
            "ns_per_element": t.ns_per_element,
            "share_of_copy": t.share_of_copy,
            "speedup": t.speedup,
        }
        for t in report.timings
    ]
    return {**asdict(report), "timings": timings}
