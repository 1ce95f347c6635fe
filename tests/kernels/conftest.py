"""Tensors to merge, cut into tiles, and the oracle of the counter hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace

Cut = Callable[..., list[Tile]]
FineTunes = Callable[..., tuple[Tensor, list[Tensor]]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As in a worker process. With more, torch's threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["numpy", "torch"])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    """On the CPU, with the steps that numpy does there, and with torch alone as on any other device."""
    return Workspace("cpu", 64 << 20, use_numpy=request.param == "numpy")


@pytest.fixture(scope="session")
def cut() -> Cut:
    """cut(inputs, base=None, chunks=1) -> the tensors as tiles of so many chunks."""

    def cut_tiles(inputs: Sequence[Tensor], base: Tensor | None = None, chunks: int = 1) -> list[Tile]:
        tensors = [*inputs, *([] if base is None else [base])]
        compute = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
        size, n = chunks * CHUNK, inputs[0].numel()
        return [
            Tile(at, [x[at : at + size] for x in inputs], None if base is None else base[at : at + size], compute)
            for at in range(0, max(n, 1), size)
        ]

    return cut_tiles


@pytest.fixture(scope="session")
def fine_tunes() -> FineTunes:
    """fine_tunes(n, dtypes, spread) -> base [n] of the first dtype, and a model [n] of each of the others."""

    def make(
        n: int, dtypes: Sequence[torch.dtype], spread: float = 0.002, seed: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(n, generator=generator, dtype=torch.float64) * 0.02
        models = [base + torch.randn(n, generator=generator, dtype=torch.float64) * spread for _ in dtypes[1:]]
        return base.to(dtypes[0]), [x.to(dtype) for x, dtype in zip(models, dtypes[1:], strict=True)]

    return make


@pytest.fixture(scope="session")
def oracle_hash() -> Callable[[Key, NDArray[np.int64]], NDArray[np.int64]]:
    """oracle_hash(key, indices) -> hashes, by the formula, in 64-bit arithmetic with explicit remainders."""

    def hashes(key: Key, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        low = np.array(indices, dtype=np.uint64) & np.uint64(0xFFFFFFFF)
        words = np.array([key.words(int(block)) for block in np.unique(indices >> 32)], dtype=np.uint64)
        first, second = words[np.unique(indices >> 32, return_inverse=True)[1]].T if len(indices) else (low, low)
        h = low ^ first
        h ^= h >> np.uint64(17)
        h = h * np.uint64(0xED5AD4BB) % np.uint64(1 << 32)
        h ^= h >> np.uint64(11)
        h = (h + second) % np.uint64(1 << 32)
        h = h * np.uint64(0xAC4C1B51) % np.uint64(1 << 32)
        h ^= h >> np.uint64(15)
        h = h * np.uint64(0x31848BAB) % np.uint64(1 << 32)
        h ^= h >> np.uint64(14)
        return h.astype(np.int64)

    return hashes
