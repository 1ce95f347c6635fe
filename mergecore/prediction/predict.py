"""Predicts the time of a merge: a sample of it is carried out, and the disk is probed."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from mergecore.methods import plugins
from mergecore.plan.plan import OutputTensor, Plan, Shard
from mergecore.prediction.disk import ReadSpeed, read_speed, write_speed
from mergecore.stream.backend import Backend
from mergecore.stream.execute import jobs
from mergecore.stream.identity import input_files
from mergecore.stream.job import Setup
from mergecore.stream.pool import Pool
from mergecore.stream.survey import survey
from mergecore.stream.writer import prepare_partial_files

PROBE_BYTES = 256_000_000
"""Smaller merges take a few seconds, so that a probe would take as long."""
_SAMPLES = 2
"""Tensors for each worker."""
_ELEMENTS = 1 << 21
"""Of each of these, at most. To find an order statistic of a small tensor takes longer per element."""
_ELEMENTS_ON_GPUS = 1 << 25
"""The same where copies and computation have to get going side by side."""
_TENSOR_S = 3e-4
"""What each tensor costs a worker, however small it is (`bench/merge`)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The time of a merge, in parts. It writes while it reads and computes."""

    startup_s: float
    """Until the workers have loaded torch and have done their first jobs."""
    read_s: float
    """For what isn't in the page cache."""
    compute_s: float
    """For the arithmetic, with copies from the page cache and to it."""
    write_s: float
    """Until all is on the disk."""
    cached: float
    """The share of the inputs that is in the page cache."""
    ns_per_element: float
    """Of the arithmetic, in one worker, or on all GPUs together."""
    workers: int
    on_gpus: bool = False
    """Then it reads while it computes; else in turn."""

    @property
    def running_s(self) -> float:
        """From when the workers are ready."""
        if self.on_gpus:
            return max(self.read_s, self.compute_s, self.write_s)
        return max(self.read_s + self.compute_s, self.write_s)

    @property
    def seconds(self) -> float:
        return self.startup_s + self.running_s

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "arithmetic": self.compute_s,
            "reading": self.read_s,
            "writing": self.write_s,
            "start-up": self.startup_s,
        }
        return max(parts, key=lambda part: parts[part])


def can_predict(plan: Plan) -> bool:
    """Whether all inputs are there, and something is merged."""
    return bool(_merged(plan)) and all(Path(file).exists() for file in _inputs(plan))


def predict(
    plan: Plan, folder: Path, pool: Pool, *, memory_bytes: int, backend: Backend, on_gpus: bool = False
) -> Prediction:
    """Of a merge by `pool`, on the disk that `folder` is or will be on.

    Reads a few megabytes of the inputs and writes as many, in a temporary folder. Raises OSError and MergeError.
    """
    workers = max(pool.workers, 1)
    place = _existing(folder)
    reading = read_speed(input_files(plan), workers)
    writing = write_speed(place)
    with TemporaryDirectory(prefix=".mergecore-probe-", dir=place) as there:
        sample = _sampled(plan, _SAMPLES * workers, _ELEMENTS_ON_GPUS if on_gpus else _ELEMENTS)
        prepare_partial_files(Path(there), sample.shards)
        setup = Setup(
            folder=Path(there),
            shards=sample.shards,
            seed=plan.seed or 0,
            model_names=tuple(model.name for model in plan.models),
            budget_bytes=memory_bytes // workers,
            allow_nonfinite=True,
            backend=backend,
            plugins=plugins.loaded_files(),
        )
        first = _seconds(sample, setup, pool)  # torch is loaded, and the sample comes into the page cache
        again = _seconds(sample, setup, pool)
    found = _prediction(plan, reading, writing, workers, first - again, again / _elements(sample.tensors))
    return replace(found, on_gpus=on_gpus)


def predict_or_none(
    plan: Plan, folder: Path, pool: Pool, *, memory_bytes: int, backend: Backend, on_gpus: bool
) -> Prediction | None:
    """The same; None where an input isn't here yet, or where something can't be read or written: the merge will say
    what. Raises MergeError."""
    if not can_predict(plan):
        return None
    try:
        return predict(plan, folder, pool, memory_bytes=memory_bytes, backend=backend, on_gpus=on_gpus)
    except OSError:
        return None


def _prediction(
    plan: Plan, reading: ReadSpeed, write_bytes_per_s: float, workers: int, startup_s: float, s_per_element: float
) -> Prediction:
    """`s_per_element`: of all workers together."""
    merged = _elements(plan.tensors) * s_per_element
    return Prediction(
        startup_s=max(startup_s, 0.0),
        read_s=plan.read_bytes * (1 - reading.cached) / reading.bytes_per_s,
        compute_s=merged + len(plan.tensors) * _TENSOR_S / workers,
        write_s=plan.write_bytes / write_bytes_per_s,
        cached=reading.cached,
        ns_per_element=s_per_element * workers * 1e9,
        workers=workers,
    )


def _seconds(sample: Plan, setup: Setup, pool: Pool) -> float:
    began = time.monotonic()
    found, _ = survey(sample, setup, pool, _no_progress)
    for _ in pool.run(replace(setup, survey=found), jobs(sample), _no_progress):
        pass
    return time.monotonic() - began


def _sampled(plan: Plan, count: int, elements: int) -> Plan:
    """The first rows of some tensors, which are spread evenly over the elements that are merged."""
    merged = _merged(plan)
    ends = list(accumulate(tensor.n for tensor in merged))
    places = [(2 * i + 1) * ends[-1] // (2 * count) for i in range(count)]
    tensors: list[OutputTensor] = []
    offset_bytes = 0
    for place in places:
        tensors.append(_first_rows(merged[bisect_right(ends, place)], elements, offset_bytes))
        offset_bytes += tensors[-1].n_bytes
    return replace(plan, tensors=tuple(tensors), shards=(Shard("sample", b"", offset_bytes),))


def _first_rows(tensor: OutputTensor, elements: int, offset_bytes: int) -> OutputTensor:
    rows = min(tensor.n // tensor.columns, max(elements // tensor.columns, 1))
    shape = (rows, tensor.columns) if len(tensor.shape) > 1 else (min(tensor.n, elements),)
    small = replace(tensor, shape=shape, shard=0, offset_bytes=offset_bytes)
    return small.within(0, small.n)


def _merged(plan: Plan) -> list[OutputTensor]:
    return [tensor for tensor in plan.tensors if tensor.method is not None and tensor.n]


def _elements(tensors: Sequence[OutputTensor]) -> int:
    return sum(tensor.n for tensor in tensors)


def _inputs(plan: Plan) -> set[str]:
    return {ref.file for tensor in plan.tensors for ref in tensor.on_disk}


def _existing(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _no_progress(read: int, written: int) -> None:
    """Nobody is told of the sample's."""
