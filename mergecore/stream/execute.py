"""Carries a plan out: every tensor merged and written, on all workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergecore.methods import plugins
from mergecore.plan.plan import OutputTensor, Plan
from mergecore.stream.backend import Backend
from mergecore.stream.budget import check_memory, needed_row
from mergecore.stream.findings import nonfinite_error
from mergecore.stream.job import Job, OnProgress, Setup
from mergecore.stream.journal import Journal
from mergecore.stream.pool import Pool
from mergecore.stream.recorder import Done, Recorder
from mergecore.stream.survey import survey
from mergecore_kernels.operations import whole_rows

SPAN = 1 << 24
"""Elements. A tensor that needs no measuring is split into jobs of this size, or of as many whole rows, so that all
workers end together."""


@dataclass(frozen=True, slots=True)
class Work:
    """One step of a run."""

    seconds: float
    read_bytes: int
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    backend: Backend
    seconds: float
    read_bytes: int
    written_bytes: int
    nonfinite: dict[tuple[str, str], int]
    """(tensor, model) -> values that are NaN or infinite, where there are any."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""
    kept_bytes: int = 0
    """Written by an earlier run, which this one went on with."""
    survey: Any = None
    """What the method's survey found."""
    steps: Mapping[str, Work] = field(default_factory=dict)
    """What each took: the `survey`, if there was one, and the `merge`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of each tensor, as written (`mergecore.stream.digests`)."""
    predicted_seconds: float | None = None
    """What was expected, where the merge is so long that it was asked."""


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
    on_resume: Callable[[int], None],
    journal: Journal,
) -> Report:
    """Fill the partial files of `plan` in `folder`, but for what the journal says is there, so many bytes as
    `on_resume` is told. Raises MergeError.
    """
    check_memory(plan, workers, memory_bytes)
    began = time.monotonic()
    setup = Setup(
        folder=folder,
        shards=plan.shards,
        seed=plan.seed or 0,
        model_names=tuple(model.name for model in plan.models),
        budget_bytes=memory_bytes // max(workers, 1),
        allow_nonfinite=allow_nonfinite,
        backend=backend,
        plugins=plugins.loaded_files(),
    )
    done = Done(plan, journal.history.records)
    if done.nonfinite and not allow_nonfinite:
        raise nonfinite_error([(*where, count) for where, count in done.nonfinite.items()])
    if done.kept_bytes:
        on_resume(done.kept_bytes)
    found, survey_bytes = _surveyed(plan, setup, pool, on_progress, journal)
    setup = replace(setup, survey=found)
    surveyed = time.monotonic()
    read_bytes = written_bytes = 0
    notes: list[str] = []
    with Recorder(journal, folder, plan.shards, done) as recorder:
        for outcome in pool.run(setup, [job for job in jobs(plan) if not done.has(job)], on_progress):
            recorder.add(outcome)
            read_bytes += outcome.read_bytes
            written_bytes += outcome.written_bytes
            notes += [outcome.note] if outcome.note else []
    digests = recorder.digests(plan.tensors)
    ended = time.monotonic()
    steps = {"survey": Work(surveyed - began, survey_bytes)} if survey_bytes else {}
    return Report(
        backend,
        ended - began,
        survey_bytes + read_bytes,
        written_bytes,
        done.nonfinite,
        tuple(dict.fromkeys(notes)),
        kept_bytes=done.kept_bytes,
        survey=found,
        steps=steps | {"merge": Work(ended - surveyed, read_bytes, written_bytes)},
        digests=digests,
    )


def report_of_finished(plan: Plan, backend: Backend) -> Report:
    """Of a merge that an earlier run had finished: this one did nothing."""
    return Report(backend, 0.0, 0, 0, {}, kept_bytes=plan.write_bytes)


def _surveyed(plan: Plan, setup: Setup, pool: Pool, on_progress: OnProgress, journal: Journal) -> tuple[Any, int]:
    """What the method's survey finds, or found in an earlier run, and the bytes that it read."""
    if journal.history.survey is not None:
        return journal.history.survey[0], 0
    found, read_bytes = survey(plan, setup, pool, on_progress)
    if plan.surveyed:
        journal.add_survey(found)
    return found, read_bytes


def jobs(plan: Plan) -> list[Job]:
    """All work, the largest pieces first, so that no worker is left with a large one at the end."""
    found = [job for tensor in plan.tensors for job in _split(tensor)]
    return sorted(found, key=lambda job: job.start - job.stop)


def _split(tensor: OutputTensor) -> Iterator[Job]:
    span = max(tensor.n, 1) if tensor.measured else whole_rows(SPAN, needed_row(tensor))
    for start in range(0, max(tensor.n, 1), span):
        stop = min(start + span, tensor.n)
        yield Job(tensor.within(start, stop), start, stop)
