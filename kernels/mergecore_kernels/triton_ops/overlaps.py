"""Where the deltas of several models overlap: counts, and the mean of those that are active. Every tensor is read once.

Step by step in torch both would be some 4 M passes over float32 temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import OverlapCounts, OverlapMean
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    BLOCK,
    Layout,
    floats_on_device,
    grouped,
    launch,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, OUT_SLOT, TAIL, load, locate, store, whole_part


@triton.jit
def _counts_kernel(
    rows_ptr,  # int64 [tiles, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    thresholds_ptr,  # float32 [tiles]
    places_ptr,  # int64 [tiles]: where the tile's job has its counts
    counts_ptr,  # int64 [Σ M, 2], zero at first: shared and unique elements
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, tile, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    threshold = tl.load(thresholds_ptr + tile)
    counts_ptr += tl.load(places_ptr + tile)
    if ALIGNED:
        whole = whole_part(left)
        _count(row_ptr, threshold, counts_ptr, at, whole, INPUTS, BASE, True, BLOCK)
        if whole < left:
            _count(row_ptr, threshold, counts_ptr, at + whole, left - whole, INPUTS, BASE, False, TAIL)
    else:
        _count(row_ptr, threshold, counts_ptr, at, left, INPUTS, BASE, False, BLOCK)


@triton.jit
def _count(
    row_ptr,
    threshold,
    counts_ptr,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    actives = ()
    count = tl.zeros((LANES,), tl.int32)
    for m in tl.static_range(len(INPUTS)):
        delta = load(row_ptr + (INPUT_SLOT + m), at, lane, left, INPUTS[m], ALIGNED) - base
        # Beyond the last element the delta is 0, which a threshold below 0 would count.
        active = tl.where((tl.abs(delta) > threshold) & (lane < left), 1, 0)
        actives = actives + (active,)
        count += active
    for m in tl.static_range(len(INPUTS)):
        # Both numbers in one, which are at most LANES each, so that one sum gives them.
        both = tl.sum(tl.where(count == 1, actives[m] << 16, actives[m]), 0)
        if both > 0:
            tl.atomic_add(counts_ptr + 2 * m, (both & 0xFFFF).to(tl.int64))
            tl.atomic_add(counts_ptr + (2 * m + 1), (both >> 16).to(tl.int64))


@triton.jit
def _mean_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    numbers_ptr,  # float32 [jobs, 1 + M]: threshold; scales
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,  # whether there are scales other than 1
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    numbers_ptr += job * (1 + len(INPUTS))
    if ALIGNED:
        whole = whole_part(left)
        _mean(row_ptr, numbers_ptr, at, whole, INPUTS, BASE, OUT, True, SCALED, BLOCK)
        if whole < left:
            _mean(row_ptr, numbers_ptr, at + whole, left - whole, INPUTS, BASE, OUT, False, SCALED, TAIL)
    else:
        _mean(row_ptr, numbers_ptr, at, left, INPUTS, BASE, OUT, False, SCALED, BLOCK)


@triton.jit
def _mean(
    row_ptr,
    numbers_ptr,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    threshold = tl.load(numbers_ptr)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    for m in tl.static_range(len(INPUTS)):
        delta = load(row_ptr + (INPUT_SLOT + m), at, lane, left, INPUTS[m], ALIGNED) - base
        active = tl.where(tl.abs(delta) > threshold, 1.0, 0.0)
        delta *= active
        if m == 0:
            total, count = delta, active
        else:
            total += delta
            count += active
        if SCALED:
            scaled = delta * tl.load(numbers_ptr + (1 + m))
            if m == 0:
                unique = scaled
            else:
                unique += scaled
    mean = tl.div_rn(total, tl.maximum(count, 1.0))
    if SCALED:
        mean = tl.where(count == 1.0, unique, mean)
    store(mean + base, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)


def overlap_counts(tiles: Tiles, spec: OverlapCounts, workspace: Workspace) -> list[tuple[int, int]]:
    """[M] (shared, unique) elements of each delta, exact."""
    counts: list[tuple[int, int]]
    ((counts,),) = awaited([overlap_counts_batch([(spec, tiles)], workspace)])
    return counts


def overlap_counts_batch(jobs: Sequence[tuple[OverlapCounts, Tiles]], workspace: Workspace) -> Pending:
    """[M] pairs for each job. A launch per round of tiles and layout, no wait."""
    counts = torch.empty(0, dtype=torch.int64, device=workspace.device)
    sizes = [0] * len(jobs)
    places: list[int] = []
    for tiles in rounds([tiles for _, tiles in jobs]):
        if not places:  # every job that has tiles has one in the first round
            for job, tile in tiles:
                sizes[job] = len(tile.inputs)
            places = [2 * sum(sizes[:job]) for job in range(len(jobs))]
            counts = torch.zeros(2 * sum(sizes), dtype=torch.int64, device=workspace.device)
        for layout, group in grouped((Layout.of(tile), (job, tile)) for job, tile in tiles).items():
            thresholds = floats_on_device([jobs[job][0].threshold for job, _ in group], workspace.device)
            own = to_device(np.array([places[job] for job, _ in group], dtype=np.int64), workspace.device)
            of_group = [tile for _, tile in group]
            launch(_counts_kernel, layout, of_group, None, workspace.device, thresholds, own, counts)
    return Pending(counts, lambda values: _pairs(sizes, values))


def _pairs(sizes: list[int], counts: list[int]) -> list[list[tuple[int, int]]]:
    """The counts of each job."""
    pairs = iter(zip(counts[0::2], counts[1::2], strict=True))
    return [[next(pairs) for _ in range(m)] for m in sizes]


def overlap_mean(tile: Tile, spec: OverlapMean, out: Tensor, workspace: Workspace) -> None:
    """[n] base + Σ active δᵢ / their number, or the scaled one where it is alone; each step is rounded to float32."""
    overlap_mean_batch([(spec, tile, out)], workspace)


def overlap_mean_batch(jobs: Sequence[tuple[OverlapMean, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout, with and without scales."""
    kinds = [((Layout.of(tile, out), set(spec.scales) != {1.0}), (spec, tile, out)) for spec, tile, out in jobs]
    for (layout, scaled), group in grouped(kinds).items():
        numbers = floats_on_device([(spec.threshold, *spec.scales) for spec, _, _ in group], workspace.device)
        tiles, outs = [tile for _, tile, _ in group], [out for _, _, out in group]
        launch(_mean_kernel, layout, tiles, outs, workspace.device, numbers, SCALED=scaled)


def bytes_moved(tile: Tile, out: Tensor | None = None) -> int:
    """Each input, the base and the output, if there is one, once: the least possible."""
    return tensor_bytes(tile, out)


CLAIMS = {
    "_counts_kernel": Claim(registers={2: 42, 4: 84, 8: 144, 16: 212}, bytes_per_element=bytes_once),
    "_mean_kernel": Claim(
        registers={2: 66, 4: 80, 8: 110, 16: 146}, bytes_per_element=bytes_once, divides=lambda constants: True
    ),
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Counts, and the mean with and without scales; a length that is no multiple of anything."""
    n = 3 * BLOCK + 5
    out = torch.zeros(n, dtype=dtype)
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], out, torch.float32)
    return {
        "counts": lambda workspace: overlap_counts_batch([(OverlapCounts(0.1), [tile])], workspace),
        "mean": lambda workspace: overlap_mean(tile, OverlapMean(0.1, (1.0,) * m), out, workspace),
        "mean, scaled": lambda workspace: overlap_mean(tile, OverlapMean(0.1, (1.5,) * m), out, workspace),
    }
