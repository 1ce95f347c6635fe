"""`mergecore merge`: carry out a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mergecore_cli import console
from mergecore_cli.options import (
    AllowCrimes,
    ConfigFile,
    KeepStages,
    Plugins,
    Quiet,
    Seed,
    ShardSize,
    Strict,
    Tensors,
    TruncateEmbeddings,
    Verbose,
)
from mergecore_cli.plan import print_stages, stage_label, tell_download, tell_plan, time_text

if TYPE_CHECKING:
    from mergecore.api import Result
    from mergecore.plan.plan import Plan

_Hidden = typer.Option(hidden=True)


def merge(
    config: ConfigFile,
    out: Annotated[Path, typer.Argument(help="The folder to write the merged model to.", metavar="OUT")],
    device: Annotated[
        str | None,
        typer.Option(show_default="cpu", help="Where to compute: cpu, cuda (all GPUs), cuda:1, or cuda:0,cuda:2."),
    ] = None,
    cuda: Annotated[bool, typer.Option("--cuda/--no-cuda", help="The same as --device cuda.")] = False,
    backend: Annotated[
        str, typer.Option(help="What computes: torch, triton (on a GPU), or auto: triton where it can.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", "--num-threads", min=0, show_default="one per core", help="Worker processes."),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for buffers, in all workers together.")] = "1GiB",
    device_memory: Annotated[
        str | None, typer.Option(show_default="80 % of what is free", help="Memory to use on each GPU: 20GB.")
    ] = None,
    shard_size: ShardSize = "5GB",
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in OUT.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    copy_tokenizer: Annotated[
        bool,
        typer.Option(
            "--copy-tokenizer/--no-copy-tokenizer",
            help="Copy the tokenizer's files to OUT. One that the config asks for is written anyhow.",
        ),
    ] = True,
    write_model_card: Annotated[
        bool, typer.Option("--write-model-card/--no-write-model-card", help="Write README.md to OUT.")
    ] = True,
    allow_crimes: AllowCrimes = False,
    tensors: Tensors = "all",
    unsafe_truncate_embeddings: TruncateEmbeddings = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Merge weights that are NaN or infinite.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted run left in OUT.")
    ] = True,
    strict: Strict = False,
    keep_stages: KeepStages = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    # Options of mergekit-yaml that have nothing to do here: scripts that use them go on working.
    gpu_rich: Annotated[bool, typer.Option("--gpu-rich", hidden=True)] = False,
    lazy_unpickle: Annotated[bool, _Hidden] = False,
    clone_tensors: Annotated[bool, _Hidden] = False,
    low_cpu_memory: Annotated[bool, _Hidden] = False,
    read_to_gpu: Annotated[bool, _Hidden] = False,
    multi_gpu: Annotated[bool, _Hidden] = False,
    async_write: Annotated[bool, _Hidden] = False,
    write_threads: Annotated[int, _Hidden] = 1,
    trust_remote_code: Annotated[bool, _Hidden] = False,
    transformers_cache: Annotated[str | None, _Hidden] = None,
    lora_merge_cache: Annotated[str | None, _Hidden] = None,
    lora_merge_dtype: Annotated[str | None, _Hidden] = None,
    safe_serialization: Annotated[bool, _Hidden] = True,
) -> None:
    """Merge models into a folder that transformers can load."""
    import mergecore

    _refuse(safe_serialization)
    if dry_run:
        stages = mergecore.plan_stages(
            config, out, keep_stages=keep_stages, seed=seed, shard_size=shard_size, allow_crimes=allow_crimes,
            strict=strict, plugins=plugin or (), resume=resume, tensors=tensors,
            truncate_embeddings=unsafe_truncate_embeddings, on_download=tell_download,
        )  # fmt: skip
        print_stages(stages, workers, memory, check_output=True, probe=True)
        return
    with console.byte_progress() as progress:

        def begin(plan: Plan) -> None:
            tell_plan(plan)
            progress.begin(plan.write_bytes)

        def go_on(plan: Plan, kept_bytes: int) -> None:
            what = f"{console.gigabytes(kept_bytes)} of {console.gigabytes(plan.write_bytes)}"
            console.talk(f"Going on{stage_label(plan)}: an interrupted run has written {what}")
            progress.skip(kept_bytes)

        result = mergecore.merge(
            config,
            out,
            device=device or ("cuda" if cuda or gpu_rich else "cpu"),
            backend=backend,
            workers=workers,
            memory=memory,
            device_memory=device_memory,
            shard_size=shard_size,
            seed=seed,
            overwrite=overwrite,
            allow_crimes=allow_crimes,
            tensors=tensors,
            truncate_embeddings=unsafe_truncate_embeddings,
            allow_nonfinite=allow_nonfinite,
            copy_tokenizer=copy_tokenizer,
            write_card=write_model_card,
            strict=strict,
            keep_stages=keep_stages,
            plugins=plugin or (),
            resume=resume,
            on_download=tell_download,
            on_plan=begin,
            on_progress=progress.advance,
            on_resume=go_on,
            on_restart=lambda folder, reason: console.talk(f"Starting anew in {folder}: {reason}"),
            on_prediction=lambda found: console.talk(f"This will take {time_text(found, found.running_s)}"),
            on_left=lambda folder: console.talk(f"What is done stays in {folder}: the same command goes on from there"),
        )
    for one in (*result.stages, result):
        _tell(one)


def _refuse(safe_serialization: bool) -> None:
    """mergekit's options that would change the output in a way that isn't there."""
    from mergecore.errors import ConfigError

    if not safe_serialization:
        raise ConfigError.at("--no-safe-serialization", "only safetensors files are written", "leave it out")


def _tell(result: Result) -> None:
    plan, report = result.plan, result.report
    for (tensor, model), count in report.nonfinite.items():
        console.warn(f"`{tensor}` of {model} holds {count} values that are NaN or infinite")
    for note in report.notes:
        console.warn(note)
    console.detail(f"The backend is {report.backend.name}: {report.backend.why}")
    rate = (report.read_bytes + report.written_bytes) / max(report.seconds, 1e-9) / 1e9
    predicted = "" if report.predicted_seconds is None else f"{report.predicted_seconds:.1f} s predicted, "
    console.talk(
        f"Merged {len(plan.tensors)} tensors{stage_label(plan)} with {report.backend} ({report.seconds:.1f} s, "
        f"{predicted}"
        f"read {console.gigabytes(report.read_bytes)}, {rate:.2f} GB/s in and out)"
    )
    files = console.count(len(plan.shards), "weight file")
    if result.stays:
        console.talk(f"Wrote {result.folder} ({files}, {console.gigabytes(plan.write_bytes)})")
