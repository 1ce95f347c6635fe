"""Histograms of magnitudes: against numpy's sort, the same for every tiling."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergecore_kernels.operations import MAGNITUDE_LOW_BITS, MagnitudeCounts
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, measure

WORKSPACE = Workspace("cpu", budget_bytes=1 << 20)


def tiles(inputs: list[Tensor], base: Tensor, size: int) -> list[Tile]:
    spans = [slice(start, start + size) for start in range(0, len(base), size)]
    return [Tile(s.start, [x[s] for x in inputs], base[s], torch.float32) for s in spans]


def magnitude_bits(x: Tensor, base: Tensor) -> np.ndarray:
    delta = np.abs(x.float().numpy() - base.float().numpy())
    return np.minimum(delta.view(np.int32) & 0x7FFFFFFF, 0x7F800000)


@given(st.lists(st.floats(width=32), min_size=1, max_size=200), st.sampled_from([torch.float32, torch.bfloat16]))
def test_counts_both_halves_of_the_bits(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values).to(dtype)
    base = torch.linspace(-1, 1, len(values)).to(dtype)
    bits = magnitude_bits(x, base)
    (first,) = measure(MagnitudeCounts((None,)), tiles([x], base, CHUNK), WORKSPACE)
    assert first == Counter((bits >> MAGNITUDE_LOW_BITS).tolist())
    most = max(first, key=lambda key: first[key])
    (rest,) = measure(MagnitudeCounts((most,)), tiles([x], base, CHUNK), WORKSPACE)
    chosen = bits[bits >> MAGNITUDE_LOW_BITS == most]
    assert rest == Counter((chosen & ((1 << MAGNITUDE_LOW_BITS) - 1)).tolist())


def test_the_tile_size_plays_no_part() -> None:
    generator = torch.Generator().manual_seed(0)
    base, *inputs = (torch.randn(3 * CHUNK + 17, generator=generator).to(torch.bfloat16) for _ in range(3))
    spec = MagnitudeCounts((None, 0x3F80 << 1))
    whole, small = (measure(spec, tiles(inputs, base, size), WORKSPACE) for size in (4 * CHUNK, CHUNK))
    assert whole == small
    assert sum(whole[0].values()) == len(base)


def test_nothing_to_count() -> None:
    empty = torch.empty(0)
    assert measure(MagnitudeCounts((None, 5)), [Tile(0, [empty, empty], empty, torch.float32)], WORKSPACE) == [{}, {}]
