"""The two calls of mergecore: plan a merge, and carry it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.config.load import load
from mergecore.output.folder import abandon_folder, check_folder, finish_folder, start_folder
from mergecore.plan.build import build
from mergecore.plan.plan import Plan
from mergecore.sizes import parse_size
from mergecore.stream.backend import choose_backend
from mergecore.stream.execute import Report, execute
from mergecore.stream.pool import default_workers, start_pool

DEFAULT_MEMORY = "1GiB"
DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True, slots=True)
class Result:
    """A merge that was carried out."""

    plan: Plan
    report: Report
    folder: Path


def plan(
    config: str | Path | Mapping[str, Any],
    *,
    seed: int | None = None,
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    allow_crimes: bool = False,
    strict: bool = False,
) -> Plan:
    """Plan a merge from the headers of its models. Reads no weight and writes nothing.

    `config` is the path of a YAML file, or its content as a mapping. Raises MergeError, with all problems found.
    """
    loaded = load(config, strict=strict)
    return build(loaded, seed=seed, shard_bytes=parse_size(shard_size, "shard_size"), allow_crimes=allow_crimes)


def merge(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    device: str = "cpu",
    backend: str = "auto",
    workers: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    seed: int | None = None,
    overwrite: bool = False,
    allow_crimes: bool = False,
    allow_nonfinite: bool = False,
    copy_tokenizer: bool = True,
    write_card: bool = True,
    strict: bool = False,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_progress: Callable[[int, int], None] = lambda read, written: None,
) -> Result:
    """Merge models into the folder `out`.

    `config` is the path of a YAML file, or its content as a mapping. `device` is named as in torch; `backend` is torch,
    triton (on a GPU), or auto, which takes triton where it can. `workers` processes (None: one per core; 0: this
    process) share the work and `memory` bytes of buffers. `seed` repeats a merge that has random numbers. `on_plan`
    is called before the first weight is read, `on_progress` with the bytes read and written since its last call.

    Raises MergeError: PlanError and ConfigError before anything is written, RunError and CheckpointError after that;
    then nothing is left behind.
    """
    chosen = choose_backend(backend, device)
    count = _workers(workers, device)
    memory_bytes = parse_size(memory, "memory")
    pool = start_pool(count)  # the workers load torch while this process plans
    try:
        planned = plan(config, seed=seed, shard_size=shard_size, allow_crimes=allow_crimes, strict=strict)
        folder = Path(out)
        check_folder(folder, planned, overwrite=overwrite)
        on_plan(planned)
        start_folder(folder)
        try:
            report = execute(
                planned,
                folder,
                pool,
                workers=count,
                backend=chosen,
                memory_bytes=memory_bytes,
                allow_nonfinite=allow_nonfinite,
                on_progress=on_progress,
            )
            finish_folder(folder, planned, copy_tokenizer=copy_tokenizer, write_card=write_card)
        except BaseException:
            abandon_folder(folder)
            raise
    finally:
        pool.close()
    return Result(planned, report, folder)


def _workers(workers: int | None, device: str) -> int:
    if workers is not None:
        return workers
    return default_workers() if device == "cpu" else 1
