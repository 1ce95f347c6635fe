"""`mergecore bench merge`: how fast this machine merges whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergecore_cli import console
from mergecore_cli.doctor import environment_rows
from mergecore_cli.options import Quiet

if TYPE_CHECKING:
    from mergecore.diagnostics.merge_bench_report import MergeBenchReport, MergeTiming


def merge(
    like: Annotated[str, typer.Option(help="Shape of the models: llama-1b, llama-8b, mixtral.")] = "llama-1b",
    layers: Annotated[
        int | None, typer.Option(min=1, show_default="all of them", help="Layers, for models that fit the disk.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32.")] = "bfloat16",
    models: Annotated[int, typer.Option(min=1, help="Fine-tunes, beside the base.")] = 3,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method to time. Can be given several times.", show_default="nine of them"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; medians count.")] = 3,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, show_default="one per core", help="Worker processes.")
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the inputs from the page cache before each run.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="A Python with mergekit, to time it beside.", metavar="PYTHON")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write outputs, for a while.", metavar="DIR", show_default="temporary")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the models are, or are made.", metavar="DIR", show_default="temporary")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Don't remove the models that were made.")] = False,
    json: Annotated[
        str | None, typer.Option(help="Write the numbers for a program; - is stdout.", metavar="FILE|-")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a bar chart.", metavar="FILE.png|FILE.svg")] = None,
    quiet: Quiet = False,
) -> None:
    """Time merges of generated models from disk to disk.

    Each merge is a process of its own. Beyond its start-up, which merging a tiny model shows, it is compared with the
    floor: reading all inputs once and writing the output, by as many processes, without arithmetic.
    """
    from mergecore.checkpoint.dtypes import Dtype
    from mergecore.diagnostics.choices import require_folder_of, require_known, require_plotting
    from mergecore.diagnostics.merge_bench import time_merges
    from mergecore.diagnostics.merge_bench_chart import draw_merges
    from mergecore.diagnostics.merge_bench_models import ModelSet
    from mergecore.diagnostics.merge_bench_shapes import shape_like

    require_known([dtype], "--dtype", ("bfloat16", "float16", "float32"))
    if plot is not None:
        require_plotting(plot)
    if json is not None:
        require_folder_of(Path(json), "--json")
    report = time_merges(
        ModelSet(shape_like(like, layers), Dtype.from_torch_name(dtype), models),
        methods=method or (),
        rounds=rounds,
        workers=workers,
        cold=cold,
        against=against,
        out=out,
        folder=folder,
        keep=keep,
        tell=console.talk,
        progress=_progress,
    )
    if json == "-":
        console.data_json(report.facts())
    else:
        _print(report)
    for line in report.skipped:
        console.warn(f"left out {line}")
    if json not in (None, "-"):
        Path(json).write_text(dumps(report.facts(), indent=2) + "\n", encoding="utf-8")
        console.talk(f"Wrote {json}")
    if plot is not None:
        draw_merges(report, plot)
        console.talk(f"Wrote {plot}")


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int], None]]:
    with console.byte_progress() as bar:
        bar.begin(total_bytes)
        yield lambda n_bytes: bar.advance(0, n_bytes)


def _print(report: MergeBenchReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    models, machine = report.models, environment_rows(report.environment)
    layers = console.count(models.shape.layers, "layer")
    cache = "from the disk" if report.cold else "in the page cache"
    console.data(f"{escape(machine['processor'])}; {console.count(report.workers, 'worker')}")
    console.data(
        f"{1 + models.tunes} models of {console.gigabytes(models.model_bytes)} ({models.dtype.torch_name}, {layers}), "
        f"{cache}; medians of {console.count(report.rounds, 'run')}\n"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for column in ("M", "s", "start-up, s", "beyond, s", "GB/s in", "floor, s", "of the floor", "peak memory"):
        table.add_column(column, justify="right")
    if report.mergekit:
        for column in (f"{report.mergekit}, s", "peak memory", "faster"):
            table.add_column(column, justify="right")
    for timing in report.timings:
        table.add_row(*_cells(timing), *(_mergekit_cells(timing) if report.mergekit else ()))
    console.data_table(table)


def _cells(t: MergeTiming) -> Iterator[str]:
    yield from (t.method, str(t.models))
    yield from (f"{seconds:.2f}" for seconds in (t.seconds, t.startup_seconds, t.seconds_beyond_startup))
    yield "" if t.bytes_per_s is None else f"{t.bytes_per_s / 1e9:.2f}"
    yield f"{t.floor_seconds:.2f}"
    yield "" if t.share_of_floor is None else f"{t.share_of_floor:.0%}"
    yield _size(t.peak_bytes)


def _mergekit_cells(t: MergeTiming) -> Iterator[str]:
    yield "" if t.mergekit_seconds is None else f"{t.mergekit_seconds:.2f}"
    yield _size(t.mergekit_peak_bytes)
    yield "" if t.speedup is None else f"{t.speedup:.1f}x"


def _size(n_bytes: int | None) -> str:
    return "" if n_bytes is None else console.gigabytes(n_bytes)
