"""`mergecore plan`: what a merge will read, need and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import AllowCrimes, ConfigFile, Quiet, Seed, ShardSize, Strict, Verbose

if TYPE_CHECKING:
    from mergecore.plan.plan import Plan


def plan(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Argument(help="Where it would be written to.", metavar="[OUT]")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=0, show_default="one per core", help="Worker processes.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for buffers, in all workers together.")] = "1GiB",
    shard_size: ShardSize = "5GB",
    seed: Seed = None,
    allow_crimes: AllowCrimes = False,
    strict: Strict = False,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Check a config and its models, and print what a merge would do. Writes nothing."""
    import mergecore

    made = mergecore.plan(config, seed=seed, shard_size=shard_size, allow_crimes=allow_crimes, strict=strict)
    print_plan(made, out, workers, memory, json=json)


def print_plan(made: Plan, out: Path | None, workers: int | None, memory: str, *, json: bool = False) -> None:
    """The plan, to stdout, and what the user should know, to stderr."""
    from mergecore.output.folder import check_folder, free_bytes
    from mergecore.sizes import parse_size
    from mergecore.stream.budget import check_memory, least_memory
    from mergecore.stream.pool import default_workers

    count = default_workers() if workers is None else workers
    least = least_memory(made, max(count, 1))
    free = free_bytes(out or Path())
    if json:
        console.data_json({**_facts(made), "least_memory_bytes": least, "workers": count, "free_disk_bytes": free})
    else:
        _print_table(made, f"{console.gigabytes(least)} at least, {memory} allowed, for {count} workers", free)
    for note in made.notes:
        console.warn(note)
    check_memory(made, count, parse_size(memory, "--memory"))
    if out is not None:
        check_folder(out, made, overwrite=True)


def tell_plan(made: Plan) -> None:
    """The plan in a line, and its notes, to stderr."""
    for note in made.notes:
        console.warn(note)
    files = console.count(len(made.shards), "weight file")
    seed = "" if made.seed is None else f", seed {made.seed}"
    console.talk(
        f"Planned {len(made.tensors)} tensors by {made.method}: {console.gigabytes(made.read_bytes)} to read, "
        f"{console.gigabytes(made.write_bytes)} to write, {files}{seed}"
    )


def _facts(made: Plan) -> dict[str, Any]:
    return {
        "digest": made.digest,
        "method": made.method,
        "architecture": made.architecture,
        "models": [{"name": model.name, "folder": str(model.folder)} for model in made.models],
        "dtype": made.dtype.torch_name,
        "layers": made.layer_count[1],
        "seed": made.seed,
        "tensors": [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype.value, "file": made.shards[t.shard].name}
            for t in made.tensors
        ],
        "files": [{"name": shard.name, "bytes": shard.n_bytes} for shard in made.shards],
        "read_bytes": made.read_bytes,
        "read_bytes_all_passes": made.passes_bytes,
        "write_bytes": made.write_bytes,
        "notes": made.notes,
    }


def _print_table(made: Plan, memory: str, free: int) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    measured = sum(tensor.measured for tensor in made.tensors)
    passes = f", twice or more for {measured} tensors that are measured first" if measured else ""
    rows = {
        "method": made.method,
        "architecture": f"{made.architecture}, {made.layer_count[1]} layers, {made.dtype.torch_name}",
        "models": "\n".join(f"{model.name} ({model.folder})" for model in made.models),
        "tensors": f"{len(made.tensors)} in {console.count(len(made.shards), 'file')} ({made.shards[0].name}"
        + (", ...)" if len(made.shards) > 1 else ")"),
        "read": console.gigabytes(made.read_bytes) + passes,
        "write": f"{console.gigabytes(made.write_bytes)}; the disk has {console.gigabytes(free)} free",
        "memory": memory,
        "seed": "nothing here is random" if made.seed is None else str(made.seed),
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    console.data(table)
