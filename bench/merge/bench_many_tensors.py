"""What a tensor costs however small it is: merges of many tiny ones, whose time should grow with their number only."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest

from mergecore import merge
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes

SHAPE = (8, 8)


def write_zeros(path: Path, count: int) -> str:
    """A file of so many tensors."""
    header = header_bytes([(f"layer.{i}.weight", Dtype.BF16, SHAPE) for i in range(count)])
    path.write_bytes(header + bytes(count * prod(SHAPE) * Dtype.BF16.size))
    return str(path)


@pytest.mark.parametrize("count", [1_000, 10_000, 100_000])
@pytest.mark.parametrize("method", ["linear", "ties"])
def bench_many_tensors(benchmark: Any, tmp_path: Path, method: str, count: int) -> None:
    base, *tuned = (write_zeros(tmp_path / f"{name}.safetensors", count) for name in "bxy")
    config = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model} for model in tuned],
        "parameters": {"weight": 1.0, "density": 0.5},
    }
    # Without the benchmark it is a test, of the smallest only.
    options = {"out": tmp_path / "out", "overwrite": True, "resume": False}
    if benchmark.disabled and count > 1_000:
        pytest.skip("takes long")
    result = benchmark.pedantic(merge, (config,), options, rounds=1)
    assert len(result.plan.tensors) == count
    benchmark.extra_info["µs per tensor"] = round(result.report.seconds / count * 1e6)
