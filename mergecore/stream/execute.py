"""Carries a plan out: every tensor merged and written, on all workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergecore.plan.plan import OutputTensor, Plan
from mergecore.stream.backend import Backend
from mergecore.stream.budget import check_memory
from mergecore.stream.job import Job, OnProgress, Setup
from mergecore.stream.pool import Pool
from mergecore.stream.writer import create_partial_files

SPAN = 1 << 24
"""Elements. A tensor that needs no measuring is split into jobs of this size, so that all workers end together."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    backend: Backend
    seconds: float
    read_bytes: int
    written_bytes: int
    nonfinite: dict[tuple[str, str], int]
    """(tensor, model) -> values that are NaN or infinite, where there are any."""


def execute(
    plan: Plan,
    folder: Path,
    pool: Pool,
    *,
    workers: int,
    backend: Backend,
    memory_bytes: int,
    allow_nonfinite: bool,
    on_progress: OnProgress,
) -> Report:
    """Write all weight files of `plan` into `folder`, under partial names. Raises MergeError."""
    check_memory(plan, workers, memory_bytes)
    began = time.monotonic()
    create_partial_files(folder, plan.shards)
    setup = Setup(
        folder=folder,
        shards=plan.shards,
        seed=plan.seed or 0,
        model_names=tuple(model.name for model in plan.models),
        budget_bytes=memory_bytes // max(workers, 1),
        allow_nonfinite=allow_nonfinite,
        backend=backend,
    )
    read_bytes = written_bytes = 0
    nonfinite: dict[tuple[str, str], int] = {}
    for outcome in pool.run(setup, jobs(plan), on_progress):
        read_bytes += outcome.read_bytes
        written_bytes += outcome.written_bytes
        for tensor, model, count in outcome.nonfinite:
            nonfinite[tensor, model] = nonfinite.get((tensor, model), 0) + count
    return Report(backend, time.monotonic() - began, read_bytes, written_bytes, nonfinite)


def jobs(plan: Plan) -> list[Job]:
    """All work, the largest pieces first, so that no worker is left with a large one at the end."""
    found = [job for tensor in plan.tensors for job in _split(tensor)]
    return sorted(found, key=lambda job: job.start - job.stop)


def _split(tensor: OutputTensor) -> Iterator[Job]:
    span = max(tensor.n, 1) if tensor.measured else SPAN
    for start in range(0, max(tensor.n, 1), span):
        yield Job(tensor, start, min(start + span, tensor.n))
