"""`mergecore merge`: carry out a config."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from mergecore_cli import console
from mergecore_cli.options import (
    AllowCrimes,
    AllowNonfinite,
    ConfigFile,
    CopyTokenizer,
    Cuda,
    Device,
    DeviceMemory,
    DryRun,
    HiddenFlag,
    HiddenText,
    KeepStages,
    Memory,
    Out,
    Overwrite,
    Plugins,
    Quiet,
    Resume,
    Seed,
    ShardSize,
    Strict,
    Tensors,
    TruncateEmbeddings,
    Verbose,
    Workers,
    WriteModelCard,
)
from mergecore_cli.plan import Machine, print_stages, stage_label, tell_download, tell_plan, time_text

if TYPE_CHECKING:
    from mergecore.api import Result
    from mergecore.plan.plan import Plan
    from mergecore.stream.pool import Pool


def merge(
    config: ConfigFile,
    out: Out,
    device: Device = None,
    cuda: Cuda = False,
    backend: Annotated[
        str, typer.Option(help="What computes: torch, triton (on a GPU), or auto: triton where it can.")
    ] = "auto",
    workers: Workers = None,
    memory: Memory = "1GiB",
    device_memory: DeviceMemory = None,
    shard_size: ShardSize = "5GB",
    seed: Seed = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    copy_tokenizer: CopyTokenizer = True,
    write_model_card: WriteModelCard = True,
    allow_crimes: AllowCrimes = False,
    tensors: Tensors = "all",
    unsafe_truncate_embeddings: TruncateEmbeddings = False,
    allow_nonfinite: AllowNonfinite = False,
    resume: Resume = True,
    strict: Strict = False,
    keep_stages: KeepStages = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    # Options of mergekit-yaml that have nothing to do here: scripts that use them go on working.
    gpu_rich: Annotated[bool, typer.Option("--gpu-rich", hidden=True)] = False,
    lazy_unpickle: HiddenFlag = False,
    clone_tensors: HiddenFlag = False,
    low_cpu_memory: HiddenFlag = False,
    read_to_gpu: HiddenFlag = False,
    multi_gpu: HiddenFlag = False,
    async_write: HiddenFlag = False,
    write_threads: HiddenText = None,
    trust_remote_code: HiddenFlag = False,
    transformers_cache: HiddenText = None,
    lora_merge_cache: HiddenText = None,
    lora_merge_dtype: HiddenText = None,
    safe_serialization: HiddenFlag = True,
) -> None:
    """Merge models into a folder that transformers can load."""
    import mergecore

    _refuse(safe_serialization)
    if trust_remote_code:
        console.warn("--trust-remote-code has no effect: code of a model is never run")
    where = device or ("cuda" if cuda or gpu_rich else "cpu")
    if dry_run:
        stages = mergecore.plan_stages(
            config, out, keep_stages=keep_stages, seed=seed, shard_size=shard_size, allow_crimes=allow_crimes,
            strict=strict, plugins=plugin or (), resume=resume, tensors=tensors,
            truncate_embeddings=unsafe_truncate_embeddings, on_download=tell_download,
        )  # fmt: skip
        print_stages(stages, Machine(where, workers, memory, device_memory), check_output=True, probe=True)
        return
    with _pool(where, workers) as pool, console.byte_progress() as progress:

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
            device=where,
            backend=backend,
            workers=workers,
            pool=pool,
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
            on_gates=_tell_gates,
            on_left=lambda folder: console.talk(f"What is done stays in {folder}: the same command goes on from there"),
        )
    for one in (*result.stages, result):
        _tell(one)


def _pool(device: str, workers: int | None) -> AbstractContextManager[Pool | None]:
    """Worker processes, before anything else: they load torch while this one loads the rest. None for GPUs."""
    from mergecore.stream.pool import start_pool

    return closing(start_pool(workers)) if device == "cpu" else nullcontext()


def _refuse(safe_serialization: bool) -> None:
    """mergekit's options that would change the output in a way that isn't there."""
    from mergecore.errors import ConfigError

    if not safe_serialization:
        raise ConfigError.at("--no-safe-serialization", "only safetensors files are written", "leave it out")


def _tell_gates(done: int, total: int) -> None:
    console.detail(f"Layer {done} of {total} of the base model has seen the prompts")
    if done == total:
        console.talk(f"Found the gates: {console.count(total, 'layer')} of the base model saw the prompts")


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
