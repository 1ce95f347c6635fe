"""What a benchmark of merges found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mergecore.diagnostics.environment import Environment
from mergecore.diagnostics.merge_bench_models import ModelSet
from mergecore.diagnostics.process_tree import Usage


@dataclass(frozen=True, slots=True)
class MergeTiming:
    """One method: all of its runs, and the medians that count."""

    method: str
    models: int
    """Inputs, the base among them if it is read."""
    read_bytes: int
    """Of all inputs, each counted once, however often the method reads it."""
    write_bytes: int
    startup_runs: tuple[Usage, ...]
    """Merges of a tiny model by the same method."""
    merge_runs: tuple[Usage, ...]
    floor_runs: tuple[float, ...]
    """Seconds for reading the same inputs and writing as much, without start-up."""
    mergekit_runs: tuple[Usage, ...]
    """Empty if it wasn't asked for, or failed."""

    @property
    def seconds(self) -> float:
        """Of a whole process."""
        return median(usage.wall_s for usage in self.merge_runs)

    @property
    def startup_seconds(self) -> float:
        return median(usage.wall_s for usage in self.startup_runs)

    @property
    def seconds_beyond_startup(self) -> float:
        """0 where the merge is no longer than a tiny one."""
        return max(0.0, self.seconds - self.startup_seconds)

    @property
    def floor_seconds(self) -> float:
        return median(self.floor_runs)

    @property
    def times_floor(self) -> float:
        """How many times the floor the merge takes beyond its start-up."""
        return self.seconds_beyond_startup / self.floor_seconds

    @property
    def share_of_floor(self) -> float | None:
        """1 is as fast as can be. None where nothing was measured beyond the start-up, as of `bytes_per_s`."""
        return 1 / self.times_floor if self.seconds_beyond_startup else None

    @property
    def bytes_per_s(self) -> float | None:
        """Of inputs, beyond the start-up."""
        return self.read_bytes / self.seconds_beyond_startup if self.seconds_beyond_startup else None

    @property
    def peak_bytes(self) -> int | None:
        """The most of all runs; None where the system doesn't tell."""
        return _most(usage.peak_bytes for usage in self.merge_runs)

    @property
    def mergekit_seconds(self) -> float | None:
        """Of a whole process."""
        return median(usage.wall_s for usage in self.mergekit_runs) if self.mergekit_runs else None

    @property
    def mergekit_peak_bytes(self) -> int | None:
        return _most(usage.peak_bytes for usage in self.mergekit_runs)

    @property
    def speedup(self) -> float | None:
        """Over mergekit, of whole processes."""
        return None if self.mergekit_seconds is None else self.mergekit_seconds / self.seconds

    def facts(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        derived = {
            name: getattr(self, name) for name, value in vars(MergeTiming).items() if isinstance(value, property)
        }
        return asdict(self) | derived


@dataclass(frozen=True, slots=True)
class MergeBenchReport:
    """All that was timed, and how."""

    environment: Environment
    models: ModelSet
    cold: bool
    """Whether the inputs were dropped from the page cache before each run, or else read into it."""
    workers: int
    """Processes, of a merge and of the floor."""
    rounds: int
    mergekit: str | None
    """Its name and version; None if it wasn't asked for."""
    timings: tuple[MergeTiming, ...]
    skipped: tuple[str, ...]
    """What could not be compared, each with its reason."""

    def facts(self) -> dict[str, Any]:
        """For a program: all fields, and what follows from each timing."""
        return {
            "environment": asdict(self.environment),
            "models": {**self.models.record(), "model_bytes": self.models.model_bytes},
            "cold": self.cold,
            "workers": self.workers,
            "rounds": self.rounds,
            "mergekit": self.mergekit,
            "timings": [timing.facts() for timing in self.timings],
            "skipped": list(self.skipped),
        }


def _most(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)
