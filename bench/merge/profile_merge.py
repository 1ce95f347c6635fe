"""Where the time of merges goes: own time of each file, in ns per element of the output, on one core.

    python bench/merge/profile_merge.py ties dare_ties      # no method named: all that `mergecore bench merge` times

The models are those of `mergecore bench merge`, with two layers, merged in one process from memory to memory. What
numpy, torch and the system do is counted for the file that called them. Python's profiler makes calls slower, so the
numbers are scaled to the time of the fastest of several runs without it.
"""

from __future__ import annotations

import os
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable
from cProfile import Profile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import mergecore
import mergecore_kernels
from mergecore.checkpoint.dtypes import Dtype
from mergecore.diagnostics.merge_bench import METHODS
from mergecore.diagnostics.merge_bench_configs import config_for
from mergecore.diagnostics.merge_bench_models import ModelSet, generate
from mergecore.diagnostics.merge_bench_shapes import shape_like
from mergecore.methods import get

Function = tuple[str, int, str]
"""File, line and name, as the profiler has them."""
RUNS = 5
PLACES = [Path(str(package.__file__)).parent for package in (mergecore, mergecore_kernels)]
LEAST_NS = 0.02


def main(methods: list[str]) -> None:
    """Print a table for each method."""
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        models = ModelSet(shape_like("llama-1b", layers=2), Dtype.BF16, tunes=3)
        folders = generate(models, Path(folder))
        for method in methods:
            config = config_for(get(method), folders, models.dtype)
            _print(method, *_profiled(config, Path(folder) / "out"))


def _profiled(config: dict[str, Any], out: Path) -> tuple[float, Counter[str]]:
    """ns per element of the output: of all, and of each file."""

    def run() -> int:
        return mergecore.merge(config, out, workers=0, overwrite=True, resume=False, seed=1).plan.write_bytes

    elements = run() // Dtype.BF16.size
    seconds = min(_seconds(run) for _ in range(RUNS))
    profile = Profile()
    profile.runcall(run)
    of_files = _own_time_of_files(pstats.Stats(profile))
    total = sum(of_files.values())
    ns = seconds / elements * 1e9
    return ns, Counter({file: share / total * ns for file, share in of_files.items()})


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _own_time_of_files(stats: pstats.Stats) -> Counter[str]:
    """Seconds of the functions in each of our files, and of what they call that isn't ours."""
    functions: dict[Function, Any] = stats.stats  # type: ignore[attr-defined]

    @cache
    def files_of(function: Function, depth: int = 0) -> dict[str, float]:
        """Shares of the function's own time, by file."""
        file = _our_file(function)
        callers = functions[function][4]
        if file or not callers or depth == 8:
            return {file or "other": 1.0}
        shares: Counter[str] = Counter()
        total = sum(times[2] for times in callers.values()) or 1.0
        for caller, times in callers.items():
            for name, share in files_of(caller, depth + 1).items():
                shares[name] += share * times[2] / total
        return shares

    found: Counter[str] = Counter()
    for function, (_, _, own_seconds, *_) in functions.items():
        for file, share in files_of(function).items():
            found[file] += own_seconds * share
    return found


def _our_file(function: Function) -> str | None:
    path = Path(function[0])
    return next((str(path.relative_to(place.parent)) for place in PLACES if path.is_relative_to(place)), None)


def _print(method: str, total: float, of_files: Counter[str]) -> None:
    print(f"{method}: {total:.1f} ns per element")
    for file, ns in of_files.most_common():
        if ns >= LEAST_NS:
            print(f"  {ns:6.2f}  {file}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(METHODS))
