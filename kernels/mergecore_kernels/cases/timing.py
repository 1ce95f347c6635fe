"""Seconds that something takes on a device, with cold caches."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

FLUSH_BYTES = 512 << 20
"""Written before each run on a GPU: more than any L2 cache, and long enough for the host to queue what is timed."""

Run = Callable[[], object]


def median_seconds(run: Run, device: torch.device, rounds: int) -> float:
    """The median of `rounds` runs, after one that isn't counted.

    On a GPU the time between two events in the stream, the L2 cache flushed before each. On the CPU the clock, with the
    number of threads that torch has been told; tensors are taken to be larger than the cache.
    """
    run()
    if device.type == "cpu":
        return median(_clock(run) for _ in range(rounds))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    return median(_between_events(run, flush) for _ in range(rounds))


def copy_seconds(x: Tensor, rounds: int) -> float:
    """Of a plain copy of x to memory that is there already."""
    target = torch.empty_like(x)
    return median_seconds(lambda: target.copy_(x), x.device, rounds)


def _clock(run: Run) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def _between_events(run: Run, flush: Tensor) -> float:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    flush.zero_()
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3
