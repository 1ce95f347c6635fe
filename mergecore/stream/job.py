"""What passes between the process that has the plan and the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mergecore.plan.plan import OutputTensor, Shard
from mergecore.stream.backend import Backend
from mergecore_kernels.operations import Measure


@dataclass(frozen=True, slots=True)
class Job:
    """The elements [start, stop) of an output tensor. Of a measured tensor: all of them."""

    tensor: OutputTensor
    start: int
    stop: int
    question: Measure | None = None
    """Where the model is surveyed: what to measure, and nothing is merged."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all jobs of a run share."""

    folder: Path
    shards: tuple[Shard, ...]
    seed: int
    model_names: tuple[str, ...]
    budget_bytes: int
    """Memory for one worker's buffers."""
    allow_nonfinite: bool
    backend: Backend
    plugins: tuple[Path, ...] = ()
    """Files with merge methods, which a worker must load before it can take jobs."""
    survey: Any = None
    """What the method's survey of the whole model found."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job did."""

    read_bytes: int
    written_bytes: int
    nonfinite: tuple[tuple[str, str, int], ...]
    """(tensor, model, values that are NaN or infinite), where there are any."""
    job: Job | None = None
    """That is done: what it had to write has been written. None only on the way from a worker process."""
    answer: Any = None
    """To the job's question."""
    note: str = ""
    """What the user should know."""
    blocks: Mapping[int, bytes] = field(default_factory=dict)
    """Hashes of the tensor's blocks (`mergecore.stream.digests`) that were taken while they were written: all, some or
    none of those that lie in the job.
    """


OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with bytes read and bytes written since the last call."""
