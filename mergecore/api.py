"""The calls of mergecore: plan a merge, and carry it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mergecore.checkpoint.location import OnDownload
from mergecore.checkpoint.recognition import ALL
from mergecore.config.load import Source, load
from mergecore.errors import ConfigError
from mergecore.methods import plugins as plugin_files
from mergecore.output.folder import check_folder
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import Plan
from mergecore.planning import build_plan
from mergecore.prediction.predict import Prediction, predict_or_none
from mergecore.run import Listeners, Run
from mergecore.sizes import parse_size
from mergecore.stages import PlannedStage, plan_all
from mergecore.stream.backend import choose_backend, is_cpu
from mergecore.stream.budget import check_memory
from mergecore.stream.device_sizes import check_device_memory
from mergecore.stream.execute import Report, execute
from mergecore.stream.journal import Journal
from mergecore.stream.pool import Pool, default_workers, start_pool
from mergecore.verification import Verification, verify_folder

DEFAULT_MEMORY = "1GiB"
DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True, slots=True)
class Result:
    """A merge that was carried out."""

    plan: Plan
    report: Report
    folder: Path
    stays: bool = True
    """Whether the model is still there: of a config of several stages those in between may be deleted."""
    stages: tuple[Result, ...] = ()
    """What was merged before this one."""


def plan(
    config: Source,
    *,
    seed: int | None = None,
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    allow_crimes: bool = False,
    tensors: str = ALL,
    truncate_embeddings: bool = False,
    strict: bool = False,
    plugins: Sequence[str | Path] = (),
    on_download: OnDownload = lambda download: None,
) -> Plan:
    """Plan a merge from the headers of its models. Reads no weight and writes nothing.

    `config` is the path of a YAML file, or its content as a mapping. `plugins` are Python files with merge methods.
    `tensors` is for files of weights without a config that says what they are: `all` of their tensors are merged and
    none may be missing in one of them, or those that they have in `common`, or `any`, each from those that have it.
    `truncate_embeddings` cuts vocabularies of different sizes to the rows that all models have, where the config has no
    `tokenizer` that merges them; which tokens they are isn't checked.
    Headers of models on the Hub are asked for by small requests. Only pickled weights and LoRA adapters are downloaded
    for planning, into huggingface_hub's cache, and `on_download` is told before.
    Raises MergeError, with all problems found. For configs of several stages there is `plan_stages`.
    """
    plugin_files.load(plugins)
    loaded = load(config, strict=strict)
    return build_plan(
        loaded,
        PlanOptions(
            seed=seed,
            shard_bytes=parse_size(shard_size, "shard_size"),
            allow_crimes=allow_crimes,
            tensors=tensors,
            truncate_embeddings=truncate_embeddings,
        ),
        on_download=on_download,
    )


def plan_stages(
    config: Source,
    out: str | Path = "merged",
    *,
    keep_stages: str | Path | None = None,
    seed: int | None = None,
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    allow_crimes: bool = False,
    tensors: str = ALL,
    truncate_embeddings: bool = False,
    strict: bool = False,
    plugins: Sequence[str | Path] = (),
    resume: bool = False,
    on_download: OnDownload = lambda download: None,
) -> tuple[PlannedStage, ...]:
    """Plan all stages of a config, in the order in which they run; of most configs that is one.

    Every document of the YAML is a stage (so is every mapping in a list of them), and its `name` stands for its output
    where another one names a model. What a stage merges is known from the plans of those before it, so nothing is read
    but the headers of models that are there. The one without a name, or that no other takes, is written to `out`;
    if there are several of these, each to the folder of its name in `out`. The others are deleted when they aren't
    needed any more, or stay in the folder `keep_stages`. To `resume`, a drawn seed is that of the run that was
    interrupted. The other arguments are those of `plan`. Raises MergeError.
    """
    plugin_files.load(plugins)
    return plan_all(
        config,
        Path(out),
        PlanOptions(
            seed=seed,
            shard_bytes=parse_size(shard_size, "shard_size"),
            allow_crimes=allow_crimes,
            tensors=tensors,
            truncate_embeddings=truncate_embeddings,
        ),
        keep_stages=None if keep_stages is None else Path(keep_stages),
        strict=strict,
        resume=resume,
        on_download=on_download,
    )


def merge(
    config: Source,
    out: str | Path,
    *,
    device: str = "cpu",
    backend: str = "auto",
    workers: int | None = None,
    pool: Pool | None = None,
    memory: str | int = DEFAULT_MEMORY,
    device_memory: str | int | None = None,
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    seed: int | None = None,
    overwrite: bool = False,
    allow_crimes: bool = False,
    tensors: str = ALL,
    truncate_embeddings: bool = False,
    allow_nonfinite: bool = False,
    copy_tokenizer: bool = True,
    write_card: bool = True,
    strict: bool = False,
    keep_stages: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    resume: bool = True,
    on_download: OnDownload = lambda download: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_progress: Callable[[int, int], None] = lambda read, written: None,
    on_resume: Callable[[Plan, int], None] = lambda plan, kept_bytes: None,
    on_restart: Callable[[Path, str], None] = lambda folder, reason: None,
    on_left: Callable[[Path], None] = lambda folder: None,
    on_prediction: Callable[[Prediction], None] = lambda prediction: None,
    on_gates: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Merge models into the folder `out`, or assemble a mixture of experts, if the config has `experts`.

    `config` is the path of a YAML file, or its content as a mapping; how several stages are merged, and what
    `keep_stages` does, see `plan_stages`. `device` is named as in torch: cpu, or GPUs, which share the work
    (`cuda`: all of them; `cuda:0,cuda:2`: two; `xpu` likewise). `backend` is torch, triton (on a GPU), or auto, which
    takes triton where it can. On the CPU `workers` processes (None: one per core; 0: this process) share the work and
    `memory` bytes of buffers; for each GPU as many threads read (None: up to 8), its buffers in host memory are within
    `memory`, and `device_memory` bytes of its own memory are used (None: 80 % of what is free). `pool` are processes
    that `start_pool(workers)` began before and that load torch meanwhile; they can do several merges, and whoever began
    them closes them. `seed` repeats a merge that has random numbers. `plugins` are Python files with merge methods.
    `on_download` is called before files of a model on the Hub are downloaded, `on_plan` for each stage before the first
    weight is read, `on_progress` with the bytes read and written since its last call.

    A merge that was interrupted or failed leaves what is done in its folder, which `on_left` is told; the same call
    goes on from there. `on_resume` is told for each stage how many bytes are there, `on_restart` why a folder must be
    begun anew: config, seed, an input or the version has changed. Without `resume` nothing is taken from earlier runs.
    `on_prediction` is told how long a long merge will take, from a sample of it. Where a mixture of experts
    has gates that are found by running its base model, `on_gates` is told how many of how many layers were run.

    Raises MergeError: PlanError and ConfigError before anything is written, RunError and CheckpointError after that.
    """
    chosen = choose_backend(backend, device)
    on_cpu = is_cpu(device)
    memory_bytes = parse_size(memory, "memory")
    device_bytes = _device_bytes(device_memory, on_cpu)
    # The processes of a new pool load torch while this one plans.
    doing = pool or (start_pool(workers) if on_cpu else _start_devices(device, device_bytes, readers=workers))
    try:
        stages = plan_stages(
            config, out, keep_stages=keep_stages, seed=seed, shard_size=shard_size, allow_crimes=allow_crimes,
            tensors=tensors, truncate_embeddings=truncate_embeddings, strict=strict, plugins=plugins, resume=resume,
            on_download=on_download,
        )  # fmt: skip
        for stage in stages:
            check_memory(stage.plan, doing.workers, memory_bytes)
            if device_bytes is not None:
                check_device_memory(device_bytes, stage.plan.tensors)
            check_folder(stage.folder, stage.plan, overwrite=overwrite or not stage.stays)
        _download(stages, on_download)
        for stage in stages:
            on_plan(stage.plan)
        run = Run(
            out=Path(out),
            pool=doing,
            backend=chosen,
            device=device,
            memory_bytes=memory_bytes,
            resume=resume,
            allow_nonfinite=allow_nonfinite,
            copy_tokenizer=copy_tokenizer,
            write_card=write_card,
            options={
                "shard_size": shard_size,
                "allow_crimes": allow_crimes,
                "tensors": tensors,
                "truncate_embeddings": truncate_embeddings,
            },
            tell=Listeners(on_progress, on_resume, on_restart, on_left, on_prediction, on_gates),
        )
        reports = run.carry_out(stages)
        results = [Result(s.plan, report, s.folder, s.stays) for s, report in zip(stages, reports, strict=True)]
        return replace(results[-1], stages=tuple(results[:-1]))
    finally:
        if doing is not pool:
            doing.close()


def predict_time(
    plan: Plan,
    out: str | Path = "merged",
    *,
    device: str = "cpu",
    workers: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    device_memory: str | int | None = None,
) -> Prediction | None:
    """How long a merge will take, from a sample of it that is carried out; None where an input isn't here yet or
    nothing can be written. Takes a few seconds, and leaves nothing behind. The arguments are those of `merge`.
    """
    on_cpu = is_cpu(device)
    backend = choose_backend("auto", device)
    device_bytes = _device_bytes(device_memory, on_cpu)
    # A merge by this process would load torch into it, and be as fast as one by a single worker.
    pool = start_pool(max(_workers(workers), 1)) if on_cpu else _start_devices(device, device_bytes, readers=workers)
    try:
        return predict_or_none(
            plan,
            Path(out),
            pool,
            memory_bytes=parse_size(memory, "memory"),
            backend=backend,
            on_gpus=not on_cpu,
        )
    finally:
        pool.close()


def verify(
    out: str | Path,
    *,
    recompute: float = 0.0,
    device: str = "cpu",
    backend: str = "auto",
    workers: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    device_memory: str | int | None = None,
    plugins: Sequence[str | Path] = (),
    on_begin: Callable[[int], None] = lambda n_bytes: None,
    on_progress: Callable[[int], None] = lambda n_bytes: None,
) -> Verification:
    """Compare a merged model or an adapter with its manifest: files, headers, and the hash of every tensor.

    The share `recompute` of a model's bytes, a sample of tensors drawn at random, is merged again from the inputs and
    compared bit for bit; the other arguments say on what, as for `merge`. The plug-ins that a manifest names are not
    run unless they are among `plugins`. `on_begin` is told the bytes that are hashed, `on_progress` those of each
    tensor. Raises CheckpointError if there is no manifest that can be read.
    """
    plugin_files.load(plugins)
    chosen = choose_backend(backend, device)
    on_cpu = is_cpu(device)
    count = _workers(workers) if on_cpu else 1
    with ExitStack() as pools:

        def carry_out(plan: Plan, folder: Path, journal: Journal) -> Report:
            return execute(
                plan,
                folder,
                pool,
                workers=count,
                backend=chosen,
                memory_bytes=parse_size(memory, "memory"),
                allow_nonfinite=True,
                on_progress=lambda read, written: None,
                on_resume=lambda n_bytes: None,
                journal=journal,
            )

        if recompute:
            device_bytes = _device_bytes(device_memory, on_cpu)
            pool = start_pool(count) if on_cpu else _start_devices(device, device_bytes, readers=workers)
            pools.callback(pool.close)
        return verify_folder(
            Path(out),
            threads=max(count, 1) if on_cpu else default_workers(),
            recompute=recompute,
            execute=carry_out,
            on_begin=on_begin,
            on_progress=on_progress,
        )


def _download(stages: Sequence[PlannedStage], on_download: OnDownload) -> None:
    """Fetch what isn't here yet from the Hub, each model once."""
    missing = dict.fromkeys(model.download for stage in stages for model in stage.plan.models)
    for download in filter(None, missing):
        from mergecore.checkpoint import hub  # only here, as huggingface_hub takes long to import

        on_download(download)
        hub.download(download)


def _workers(workers: int | None) -> int:
    return default_workers() if workers is None else workers


def _device_bytes(device_memory: str | int | None, on_cpu: bool) -> int | None:
    if device_memory is None:
        return None
    if on_cpu:
        raise ConfigError.at("--device-memory", "is for GPUs, and the device is cpu", "add --device cuda")
    return parse_size(device_memory, "device_memory")


def _start_devices(names: str, memory_bytes: int | None, readers: int | None) -> Pool:
    from mergecore.stream.devices import start_devices  # only here, as it loads torch

    return start_devices(names, device_memory_bytes=memory_bytes, readers=readers)
