"""What passes between the process that has the plan and the workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mergecore.plan.plan import OutputTensor, Shard
from mergecore.stream.backend import Backend


@dataclass(frozen=True, slots=True)
class Job:
    """The elements [start, stop) of an output tensor. Of a measured tensor: all of them."""

    tensor: OutputTensor
    start: int
    stop: int


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job did."""

    read_bytes: int
    written_bytes: int
    nonfinite: tuple[tuple[str, str, int], ...]
    """(tensor, model, values that are NaN or infinite), where there are any."""


OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with bytes read and bytes written since the last call."""
