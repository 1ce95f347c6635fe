"""Time each operation on tensors of real sizes, in memory: the cases of `mergecore bench kernels`.

    pytest bench/kernels --benchmark-enable --benchmark-only --benchmark-columns=median,rounds -k q_proj

ns per element (of the output, one thread on a CPU), GB/s (the least possible bytes: inputs read once, the output
written once) and the share of a plain copy's GB/s are in each result's extra_info (`--benchmark-json`), and printed at
the end with `-s`. Results are checked before the clock starts. Without --benchmark-enable all cases run once, on a
small tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from mergecore_kernels import torch_ops
from mergecore_kernels.cases import (
    DTYPES,
    OPERATIONS,
    Case,
    Ops,
    copy_seconds,
    free_bytes,
    make_data,
    new_workspace,
    problem_of,
    run_case,
    select_cases,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REAL_SIZES = ("q_proj", "down_proj")
ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = REAL_SIZES if metafunc.config.getoption("--benchmark-enable") else ("small",)
    cases = list(select_cases(OPERATIONS, ("bf16", "fp32"), (2, 3), sizes))
    metafunc.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker process, of which there is one per core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def backend() -> Ops:
    """Triton where there is a GPU for it."""
    if DEVICE.type == "cpu" or find_spec("triton") is None:
        return torch_ops
    from mergecore_kernels import triton_ops

    return triton_ops


@lru_cache(maxsize=1)
def copy_rate(dtype: str, n: int) -> float:
    """Bytes per second, read and written."""
    x = torch.ones(n, dtype=DTYPES[dtype], device=DEVICE)
    return 2 * x.nbytes / copy_seconds(x, ROUNDS)


def bench_operation(benchmark: Any, case: Case) -> None:
    if case.memory_bytes > free_bytes(DEVICE):
        pytest.skip(f"needs {case.memory_bytes / 1e9:.1f} GB")
    ops, data, workspace = backend(), make_data(case, DEVICE), new_workspace(DEVICE)
    assert problem_of(data, run_case(ops, data, workspace)) == ""

    def run() -> None:
        run_case(ops, data, workspace)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats:
        tell(benchmark, case)


def tell(benchmark: Any, case: Case) -> None:
    """Put what was measured into the benchmark's record."""
    median_s = benchmark.stats.stats.median
    bytes_per_s = case.bytes_moved / median_s
    benchmark.extra_info["ns per element"] = round(median_s / case.size.n * 1e9, 2)
    benchmark.extra_info["GB/s"] = round(bytes_per_s / 1e9, 2)
    benchmark.extra_info["share of a copy"] = round(bytes_per_s / copy_rate(case.dtype, case.size.n), 3)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
