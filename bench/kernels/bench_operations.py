"""Time each operation on tensors of real sizes, in memory.

    pytest bench/kernels --benchmark-enable --benchmark-only --benchmark-columns=median,rounds

ns per element (of the output, one thread), GB/s (inputs read once per pass and the output written) and the
share of a plain copy's GB/s are in each result's extra_info (`--benchmark-json`), and printed at the end with `-s`.
Results are checked before the clock starts. Without --benchmark-enable all cases run once, on one chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mergecore_kernels.operations import (
    Consensus,
    Copy,
    Drop,
    Gram,
    Key,
    KthMagnitudes,
    MagnitudeSums,
    Trim,
    WeightedSum,
)
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, combine, count_nonfinite, measure

SIZES = {"llama-1b up_proj": 5632 * 2048, "llama-8b q_proj": 4096 * 4096}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TILE = 4 * CHUNK
DENSITY = 0.5
SPREADS = (0.0002, 0.0005, 0.002, 0.001)  # standard deviations of the deltas; the first gives many equals


@dataclass(frozen=True)
class Case:
    """Some models, their base and what the operations need."""

    base: Tensor
    models: tuple[Tensor, ...]
    workspace: Workspace
    out: Tensor

    @property
    def n(self) -> int:
        return self.base.numel()

    @property
    def weights(self) -> tuple[float, ...]:
        return (0.4, 0.3, 0.2, 0.1)[: len(self.models)]

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(Key.of("bench", 0, "weight", i) for i in range(len(self.models)))

    @property
    def drops(self) -> tuple[Drop, ...]:
        return tuple(Drop.keeping(DENSITY, key) for key in self.keys)

    def tiles(self, with_base: bool = True) -> list[Tile]:
        return [
            Tile(
                at,
                [x[at : at + TILE] for x in self.models],
                self.base[at : at + TILE] if with_base else None,
                torch.float32,
            )
            for at in range(0, self.n, TILE)
        ]

    def combined(self, spec: Any, with_base: bool = True) -> Tensor:
        for tile in self.tiles(with_base):
            combine(spec, tile, self.out[tile.start : tile.start + len(tile)], self.workspace)
        return self.out


@lru_cache(maxsize=1)
def make_case(n: int, dtype: torch.dtype, m: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, generator=generator) * 0.02
    models = tuple((base + torch.randn(n, generator=generator) * spread).to(dtype) for spread in SPREADS[:m])
    return Case(base.to(dtype), models, Workspace("cpu", 256 << 20), torch.empty(n, dtype=dtype))


@lru_cache(maxsize=1)
def trims_of(n: int, dtype: torch.dtype, m: int) -> tuple[Trim, ...]:
    case = make_case(n, dtype, m)
    trims: tuple[Trim, ...] = measure(KthMagnitudes((n // 2,) * m, case.keys), case.tiles(), case.workspace)
    return trims


@pytest.fixture(params=SIZES)
def n(request: pytest.FixtureRequest) -> int:
    measured = request.config.getoption("--benchmark-enable")
    return SIZES[request.param] if measured else CHUNK


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker process, of which there is one per core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def timed(benchmark: Any, case: Case, run: Callable[[], object], tensors_moved: int) -> None:
    """`tensors_moved`: how many tensors are read or written, once per pass."""
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    if not benchmark.stats:
        return
    median_s = benchmark.stats.stats.median
    bytes_per_s = tensors_moved * case.n * case.base.itemsize / median_s
    benchmark.extra_info["ns per element"] = round(median_s / case.n * 1e9, 2)
    benchmark.extra_info["GB/s"] = round(bytes_per_s / 1e9, 2)
    benchmark.extra_info["share of a copy"] = round(bytes_per_s / copy_bytes_per_s(case), 3)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def copy_bytes_per_s(case: Case) -> float:
    """Of a plain copy of one of the tensors, the best of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        case.out.copy_(case.base)
        times.append(time.perf_counter() - start)
    return 2 * case.n * case.base.itemsize / min(times)


def bench_copy(benchmark: Any, n: int, dtype: torch.dtype) -> None:
    case = make_case(n, dtype, 1)
    assert torch.equal(case.combined(Copy(), with_base=False), case.models[0])
    timed(benchmark, case, lambda: case.combined(Copy(), with_base=False), 2)


def bench_count_nonfinite(benchmark: Any, n: int, dtype: torch.dtype) -> None:
    case = make_case(n, dtype, 1)
    tiles = case.tiles()
    assert count_nonfinite(case.models[0]) == 0
    timed(benchmark, case, lambda: [count_nonfinite(tile.inputs[0]) for tile in tiles], 1)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("deltas", [False, True], ids=["weights", "deltas"])
def bench_weighted_sum(benchmark: Any, n: int, dtype: torch.dtype, m: int, deltas: bool) -> None:
    case = make_case(n, dtype, m)
    spec = WeightedSum(case.weights)
    origin = case.base.double() * deltas
    want = origin + sum((x.double() - origin) * w for w, x in zip(case.weights, case.models, strict=True))
    assert_close(case.combined(spec, deltas), want)
    timed(benchmark, case, lambda: case.combined(spec, deltas), m + 1 + deltas)


@pytest.mark.parametrize("m", [2, 3, 4])
def bench_gram(benchmark: Any, n: int, dtype: torch.dtype, m: int) -> None:
    case = make_case(n, dtype, m)
    dots = measure(Gram(), case.tiles(), case.workspace)
    delta = case.models[0].double() - case.base.double()
    assert dots[0][0] == pytest.approx(float(delta @ delta), rel=1e-6)
    timed(benchmark, case, lambda: measure(Gram(), case.tiles(), case.workspace), m + 1)


@pytest.mark.parametrize("m", [1, 3])
def bench_kth_magnitudes(benchmark: Any, n: int, dtype: torch.dtype, m: int) -> None:
    case = make_case(n, dtype, m)
    for x, trim in zip(case.models, trims_of(n, dtype, m), strict=True):
        delta = x.float() - case.base.float()
        assert trim.magnitude == float(delta.abs_().kthvalue(n - n // 2 + 1).values)
    spec = KthMagnitudes((n // 2,) * m, case.keys)
    timed(benchmark, case, lambda: measure(spec, case.tiles(), case.workspace), 2 * (m + 1))


@pytest.mark.parametrize("m", [1, 3])
def bench_magnitude_sums(benchmark: Any, n: int, dtype: torch.dtype, m: int) -> None:
    case = make_case(n, dtype, m)
    spec = MagnitudeSums(case.drops)
    before, after = measure(spec, case.tiles(), case.workspace)[0]
    want = float((case.models[0].double() - case.base.double()).abs().sum())
    assert before == pytest.approx(want, rel=1e-5)
    assert after == pytest.approx(DENSITY * want, rel=0.05)
    timed(benchmark, case, lambda: measure(spec, case.tiles(), case.workspace), m + 1)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear"])
@pytest.mark.parametrize("m", [2, 3])
def bench_consensus(benchmark: Any, n: int, dtype: torch.dtype, m: int, method: str) -> None:
    case = make_case(n, dtype, m)
    if method == "ties":
        spec = Consensus(case.weights, trims_of(n, dtype, m), (1.0,) * m, elect=True, normalize=True, scale=1.0)
    else:
        spec = Consensus(case.weights, case.drops, (2.0,) * m, method == "dare_ties", normalize=False, scale=1.0)
    moved = (case.combined(spec).double() - case.base.double()).norm()
    largest = max((x.double() - case.base.double()).norm() for x in case.models)
    assert 0.1 * largest < moved < 2 * largest
    timed(benchmark, case, lambda: case.combined(spec), m + 2)


def assert_close(got: Tensor, want: Tensor) -> None:
    """Within a unit of the output dtype, and float32's where terms cancel."""
    assert ((got.double() - want).abs() <= torch.finfo(got.dtype).eps * want.abs() + 1e-7).all()
