"""`mergecore plan`: what a merge will read, need and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore_cli import console
from mergecore_cli.options import (
    AllowCrimes,
    ConfigFile,
    Device,
    DeviceMemory,
    Memory,
    Plugins,
    Quiet,
    Seed,
    ShardSize,
    Strict,
    Tensors,
    TruncateEmbeddings,
    Verbose,
    Workers,
)

if TYPE_CHECKING:
    from mergecore.checkpoint.location import Download
    from mergecore.plan.plan import Plan
    from mergecore.prediction.predict import Prediction
    from mergecore.stages import PlannedStage
    from mergecore.tokenizer.vocabulary import Vocabulary


def plan(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Argument(help="Where it would be written to.", metavar="[OUT]")] = None,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = "1GiB",
    device_memory: DeviceMemory = None,
    shard_size: ShardSize = "5GB",
    seed: Seed = None,
    allow_crimes: AllowCrimes = False,
    tensors: Tensors = "all",
    unsafe_truncate_embeddings: TruncateEmbeddings = False,
    strict: Strict = False,
    plugin: Plugins = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Predict the time of a long merge from a short sample of it.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Check a config and its models, and print what a merge would do. Leaves nothing on the disk."""
    import mergecore

    stages = mergecore.plan_stages(
        config, out or Path("merged"), seed=seed, shard_size=shard_size, allow_crimes=allow_crimes, strict=strict,
        plugins=plugin or (), tensors=tensors, truncate_embeddings=unsafe_truncate_embeddings,
        on_download=tell_download,
    )  # fmt: skip
    machine = Machine(device or "cpu", workers, memory, device_memory)
    print_stages(stages, machine, check_output=out is not None, probe=probe, json=json)


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What a merge may use: the options of these names."""

    device: str
    workers: int | None
    memory: str
    device_memory: str | None


def print_stages(
    stages: Sequence[PlannedStage],
    machine: Machine,
    *,
    check_output: bool,
    probe: bool,
    json: bool = False,
) -> None:
    """The plans, to stdout, and what the user should know, to stderr. For programs: a list, if there are several."""
    from mergecore.output.folder import check_folder, free_bytes
    from mergecore.sizes import parse_size
    from mergecore.stream.budget import check_memory, least_memory
    from mergecore.stream.pool import default_workers

    on_cpu = machine.device == "cpu"
    count = (default_workers() if machine.workers is None else machine.workers) if on_cpu else 1
    all_facts = []
    for stage in stages:
        made = stage.plan
        least = least_memory(made, max(count, 1))
        free = free_bytes(stage.folder)
        folder = str(stage.folder) if check_output else None
        needs = {"folder": folder, "least_memory_bytes": least, "workers": count, "free_disk_bytes": free}
        time = _predicted(stage, machine) if probe else None
        all_facts.append(_facts(stage) | needs | {"time": None if time is None else _time_facts(time)})
        if not json:
            users = console.count(count, "worker") if on_cpu else machine.device
            memory_text = f"{console.gigabytes(least)} at least, {machine.memory} allowed, for {users}"
            _print_table(stage, memory_text, free, time)
        for note in made.notes:
            console.warn(note)
    if json:
        console.data_json(all_facts if len(stages) > 1 else all_facts[0])
    for stage in stages:
        check_memory(stage.plan, count, parse_size(machine.memory, "--memory"))
        if check_output:
            check_folder(stage.folder, stage.plan, overwrite=True)


def _predicted(stage: PlannedStage, machine: Machine) -> Prediction | None:
    """None for a merge that takes a few seconds, or whose inputs aren't all here."""
    import mergecore
    from mergecore.prediction.predict import PROBE_BYTES

    if stage.plan.passes_bytes < PROBE_BYTES:
        return None
    return mergecore.predict_time(stage.plan, stage.folder, **dataclasses.asdict(machine))


def time_text(time: Prediction, seconds: float) -> str:
    """`about 12 s, bound by arithmetic (14 ns per element, 2 workers); ...`"""
    where = f"{time.cached:.0%} of the inputs in the page cache"
    users = "on GPUs" if time.on_gpus else console.count(time.workers, "worker")
    return (
        f"about {seconds:.2g} s, bound by {time.bound} ({time.ns_per_element:.3g} ns per element, "
        f"{users}): start-up {time.startup_s:.1f} s, read {time.read_s:.1f} s "
        f"({where}), compute {time.compute_s:.1f} s, write {time.write_s:.1f} s meanwhile"
    )


def _time_facts(time: Prediction) -> dict[str, Any]:
    return {**dataclasses.asdict(time), "seconds": time.seconds, "bound": time.bound}


def stage_label(made: Plan) -> str:
    """Names the stage, if there are several."""
    return "" if made.name is None else f" of `{made.name}`"


def tell_download(download: Download) -> None:
    """What is about to be downloaded, and why, to stderr. huggingface_hub shows its progress on a terminal."""
    if console.quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    console.talk(
        f"Downloading {download.model}: {console.count(len(download.files), 'file')}, "
        f"{console.gigabytes(download.n_bytes)}, commit {download.commit[:10]} ({download.reason})"
    )


def tell_plan(made: Plan) -> None:
    """The plan in a line, and its notes, to stderr."""
    for note in made.notes:
        console.warn(note)
    files = console.count(len(made.shards), "weight file")
    seed = "" if made.seed is None else f", seed {made.seed}"
    console.talk(
        f"Planned {len(made.tensors)} tensors{stage_label(made)} by {made.method}: "
        f"{console.gigabytes(made.read_bytes)} to read, {console.gigabytes(made.write_bytes)} to write, {files}{seed}"
    )


def _facts(stage: PlannedStage) -> dict[str, Any]:
    made = stage.plan
    return {
        "stage": made.name,
        "stays": stage.stays,
        "digest": made.digest,
        "method": made.method,
        "architecture": made.architecture,
        "models": [{"name": model.name, "folder": str(model.folder), "commit": model.commit} for model in made.models],
        "download_bytes": made.download_bytes,
        "dtype": made.dtype.torch_name,
        "layers": {layers.module: layers.n for layers in made.layers},
        "seed": made.seed,
        "vocabulary": None if made.vocabulary is None else _vocabulary_facts(made.vocabulary),
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


def _vocabulary_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "source": vocabulary.source,
        "tokens": vocabulary.n_tokens,
        "rows": vocabulary.n_rows,
        "models": [dataclasses.asdict(model) for model in vocabulary.models],
    }


def _layers(made: Plan) -> str:
    """`32 layers`, or of how many modules each."""
    one, *others = [layers for layers in made.layers if layers.n] or made.layers[:1]
    if not others:
        return f"{one.n} layers"
    return "layers: " + ", ".join(f"{layers.n} in {layers.module}" for layers in (one, *others))


def _print_table(stage: PlannedStage, memory: str, free: int, time: Prediction | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    made = stage.plan
    table = Table(show_header=False, box=None, pad_edge=False)
    measured = sum(tensor.measured for tensor in made.tensors)
    passes = f", twice or more for {measured} tensors that are measured first" if measured else ""
    rows = (
        {}
        if made.name is None
        else {"stage": f"{made.name}, {'written to' if stage.stays else 'for a while in'} {stage.folder}"}
    )
    rows |= {
        "method": made.method,
        "architecture": f"{made.architecture}, {_layers(made)}, {made.dtype.torch_name}",
        "models": "\n".join(f"{model.name} ({model.folder})" for model in made.models),
        **({"download": console.gigabytes(made.download_bytes)} if made.download_bytes else {}),
        **({"tokens": "\n".join(map(str, (made.vocabulary, *made.vocabulary.models)))} if made.vocabulary else {}),
        "tensors": f"{len(made.tensors)} in {console.count(len(made.shards), 'file')} ({made.shards[0].name}"
        + (", ...)" if len(made.shards) > 1 else ")"),
        "read": console.gigabytes(made.read_bytes) + passes,
        "write": f"{console.gigabytes(made.write_bytes)}; the disk has {console.gigabytes(free)} free",
        "memory": memory,
        **({} if time is None else {"time": time_text(time, time.seconds)}),
        "seed": "nothing here is random" if made.seed is None else str(made.seed),
    }
    for name, value in rows.items():
        lines = map(console.printable, value.split("\n"))
        table.add_row(f"[bold]{name}[/bold]", escape("\n".join(lines)))
    console.data(table)
