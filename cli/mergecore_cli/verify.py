"""`mergecore verify`: is a merged model or an adapter still what was written?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import Plugins, Quiet

if TYPE_CHECKING:
    from mergecore.verification import Verification


def verify(
    out: Annotated[Path, typer.Argument(help="The folder of a merged model or an adapter.", metavar="OUT")],
    recompute: Annotated[
        str,
        typer.Option(help="Merge so much of a model again, from the inputs, and compare the bits.", metavar="PERCENT"),
    ] = "0%",
    device: Annotated[str, typer.Option(help="Where to merge again: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=0, show_default="one per core", help="Worker processes.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for buffers, in all workers together.")] = "1GiB",
    plugin: Plugins = None,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare a merged model or an adapter with its manifest, mergecore.json: files, headers, the hash of every tensor.

    It finds what disks and copies do to bytes, not what someone does on purpose. The exit code is 1 if something
    differs.
    """
    import mergecore

    share = _share(recompute)
    with console.byte_progress() as progress:
        found = mergecore.verify(
            out,
            recompute=share,
            device=device,
            workers=workers,
            memory=memory,
            plugins=plugin or (),
            on_begin=progress.begin,
            on_progress=lambda n_bytes: progress.advance(0, n_bytes),
        )
    if json:
        console.data_json(_facts(found))
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(1)


def _share(text: str) -> float:
    """`5%` or `5` -> 0.05. Raises ConfigError."""
    from mergecore.errors import ConfigError

    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise ConfigError.at("--recompute", f"`{text}` is not a share of the model", "write it like 5%")
    return share


def _print(found: Verification) -> None:
    from rich.markup import escape
    from rich.table import Table

    for note in found.notes:
        console.warn(note)
    for problem in found.problems:
        console.problem(problem)
    table = Table(show_header=False, box=None, pad_edge=False)
    rate = found.n_bytes / max(found.seconds, 1e-9) / 1e9
    again = f"{console.count(len(found.recomputed), 'tensor')} came out" if found.recomputed else "not asked for"
    rows = {
        "folder": str(found.folder),
        "weights": f"{console.count(found.tensors, 'tensor')} in {console.count(found.files, 'file')}, "
        f"{console.gigabytes(found.n_bytes)} ({found.seconds:.1f} s, {rate:.2f} GB/s)",
        "merged again": again,
        "result": "as it was written" if found.passed else console.count(len(found.problems), "difference"),
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.data_table(table)


def _facts(found: Verification) -> dict[str, Any]:
    return {"passed": found.passed, **asdict(found), "folder": str(found.folder)}
