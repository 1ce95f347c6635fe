"""Histograms of the deltas' magnitudes, in one pass that reads every tensor once.

An element adds 1 to its counter in global memory; integers are exact in any order. The first bucket holds many of them:
zeros, or the low bits of deltas of 16-bit numbers, which are mostly zero. So a program adds those up and makes one
addition of them. Other magnitudes that are frequent make additions wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from mergecore_kernels.operations import MAGNITUDE_LOW_BITS, MagnitudeCounts
from mergecore_kernels.torch_ops.sieve import INFINITY
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import BLOCK, Layout, grouped, launch, tensor_bytes, to_device
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, TAIL, load, locate, whole_part

BUCKETS = (INFINITY >> MAGNITUDE_LOW_BITS) + 1
"""Counters of a delta: as many as there are first bits. Of the low bits there are fewer."""
_ALL = tl.constexpr(-1)
"""In the place of the first bits of a magnitude, where these are what is counted."""
_INFINITY, _BUCKETS = tl.constexpr(INFINITY), tl.constexpr(BUCKETS)
_LOW_BITS, _LOW = tl.constexpr(MAGNITUDE_LOW_BITS), tl.constexpr((1 << MAGNITUDE_LOW_BITS) - 1)


@triton.jit
def _magnitude_counts_kernel(
    rows_ptr,  # int64 [tiles, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    firsts_ptr,  # int32 [tiles, M]: the first bits of the magnitudes whose low bits are counted, or _ALL
    places_ptr,  # int64 [tiles]: where the tile's job has its counters
    counts_ptr,  # int64 [Σ M, BUCKETS], zero at first
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, tile, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    firsts_ptr += tile * len(INPUTS)
    counts_ptr += tl.load(places_ptr + tile)
    if ALIGNED:
        whole = whole_part(left)
        _count(row_ptr, firsts_ptr, counts_ptr, at, whole, INPUTS, BASE, True, BLOCK)
        if whole < left:
            _count(row_ptr, firsts_ptr, counts_ptr, at + whole, left - whole, INPUTS, BASE, False, TAIL)
    else:
        _count(row_ptr, firsts_ptr, counts_ptr, at, left, INPUTS, BASE, False, BLOCK)


@triton.jit
def _count(
    row_ptr,
    firsts_ptr,  # of the tile
    counts_ptr,  # of the job
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    for m in tl.static_range(len(INPUTS)):
        delta = load(row_ptr + (INPUT_SLOT + m), at, lane, left, INPUTS[m], ALIGNED) - base
        bits = tl.minimum(delta.to(tl.int32, bitcast=True) & 0x7FFFFFFF, _INFINITY)
        wanted = tl.load(firsts_ptr + m)
        first = bits >> _LOW_BITS
        low = tl.where(first == wanted, bits & _LOW, -1)
        bucket = tl.where(lane < left, tl.where(wanted == _ALL, first, low), -1)
        counter_ptr = counts_ptr + m * _BUCKETS
        in_first = tl.sum(tl.where(bucket == 0, 1, 0), 0)
        if in_first > 0:
            tl.atomic_add(counter_ptr, in_first.to(tl.int64), sem="relaxed")
        one = tl.full((LANES,), 1, tl.int64)
        tl.atomic_add(counter_ptr + bucket, one, mask=bucket > 0, sem="relaxed")


def magnitude_counts(tiles: Tiles, spec: MagnitudeCounts, workspace: Workspace) -> list[dict[int, int]]:
    """[M] number of elements by the bits that are asked for; bits that don't occur are left out."""
    counts: list[dict[int, int]]
    ((counts,),) = awaited([magnitude_counts_batch([(spec, tiles)], workspace)])
    return counts


def magnitude_counts_batch(jobs: Sequence[tuple[MagnitudeCounts, Tiles]], workspace: Workspace) -> Pending:
    """[M] dicts for each job. A launch per round of tiles and layout, and a wait for which counters aren't zero."""
    sizes = [len(spec.first_bits) for spec, _ in jobs]
    places = BUCKETS * (np.cumsum(sizes) - sizes)
    counts = torch.zeros(BUCKETS * sum(sizes), dtype=torch.int64, device=workspace.device)
    firsts = [[_ALL.value if bits is None else bits for bits in spec.first_bits] for spec, _ in jobs]
    for tiles in rounds([tiles for _, tiles in jobs]):
        for layout, group in grouped((Layout.of(tile), (job, tile)) for job, tile in tiles).items():
            wanted = to_device(np.array([firsts[job] for job, _ in group], dtype=np.int32), workspace.device)
            own = to_device(places[[job for job, _ in group]], workspace.device)
            of_group = [tile for _, tile in group]
            launch(_magnitude_counts_kernel, layout, of_group, None, workspace.device, wanted, own, counts)
    present = counts.nonzero().view(-1)
    return Pending(torch.cat([present, counts[present]]), lambda values: _by_bits(sizes, values))


def _by_bits(sizes: Sequence[int], values: Sequence[int]) -> list[list[dict[int, int]]]:
    """The counters that aren't zero, after their places -> the counts of each job."""
    counts: list[dict[int, int]] = [{} for _ in range(sum(sizes))]
    half = len(values) // 2
    for place, count in zip(values[:half], values[half:], strict=True):
        counts[place // BUCKETS][place % BUCKETS] = count
    of_deltas = iter(counts)
    return [[next(of_deltas) for _ in range(m)] for m in sizes]


def bytes_moved(tile: Tile) -> int:
    """Each input and the base once, which is the least possible."""
    return tensor_bytes(tile)


CLAIMS = {"_magnitude_counts_kernel": Claim(registers={2: 64, 4: 72, 8: 86}, bytes_per_element=bytes_once)}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Both halves of the bits are counted by the same code; a length that is no multiple of anything."""
    n = 3 * BLOCK + 5
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    return {"first bits": partial(_example, MagnitudeCounts((None,) * m), tile)}


def _example(spec: MagnitudeCounts, tile: Tile, workspace: Workspace) -> Pending:
    return magnitude_counts_batch([(spec, [tile])], workspace)
