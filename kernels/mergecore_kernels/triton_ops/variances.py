"""Variances over the models, element by element: which are the largest, and the deltas where they are.

One pass reads every tensor once, counts the elements that vary and writes the squared deviations, in float32; the k-th
largest of them is found as that of a delta. They are kept between its passes if the budget allows that, and if not
computed anew. Step by step in torch a pass would be some 5 M passes over float32 temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import KthMagnitudes, LargestVariances, Trim
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.variances import selected
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    BLOCK,
    Layout,
    grouped,
    launch,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, OUT_SLOT, TAIL, load, locate, store, whole_part
from mergecore_kernels.triton_ops.masks import masked
from mergecore_kernels.triton_ops.order_statistics import kth_magnitudes_batch

_Job: TypeAlias = tuple[LargestVariances, Tiles]


@triton.jit
def squared_deviations(
    deltas,  # M x float32 [LANES]
):
    """float32 [LANES]: Σ (δᵢ - mean)², from the differences δᵢ - δ₀."""
    mean = deltas[0] - deltas[0]
    for m in tl.static_range(1, len(deltas)):
        mean += deltas[m] - deltas[0]
    mean = tl.div_rn(mean, tl.zeros_like(mean) + len(deltas))
    total = mean * mean
    for m in tl.static_range(1, len(deltas)):
        deviation = (deltas[m] - deltas[0]) - mean
        total += deviation * deviation
    return total


@triton.jit
def select(
    deltas,  # M x float32 [LANES]
    mask,  # of `load_mask`: the selection
    offset,  # uint32 [LANES]: the elements, counted from the program's first
    KIND: tl.constexpr,
):
    """M x float32 [LANES]: the deltas where the selection keeps them, else +0."""
    if KIND == "all":
        chosen = deltas
    else:
        kept = masked(squared_deviations(deltas), mask, offset, KIND) != 0.0
        chosen = ()
        for m in tl.static_range(len(deltas)):
            chosen = chosen + (tl.where(kept, deltas[m], 0.0),)
    return chosen


@triton.jit
def _deviations_kernel(
    rows_ptr,  # int64 [tiles, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    jobs_ptr,  # int64 [tiles]
    varying_ptr,  # int64 [jobs], zero at first: elements that vary
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, tile, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    varying_ptr += tl.load(jobs_ptr + tile)
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, varying_ptr, at, whole, INPUTS, BASE, OUT, True, BLOCK)
        if whole < left:
            _body(row_ptr, varying_ptr, at + whole, left - whole, INPUTS, BASE, OUT, False, TAIL)
    else:
        _body(row_ptr, varying_ptr, at, left, INPUTS, BASE, OUT, False, BLOCK)


@triton.jit
def _body(
    row_ptr,
    varying_ptr,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    deltas = ()
    for m in tl.static_range(len(INPUTS)):
        deltas = deltas + (load(row_ptr + (INPUT_SLOT + m), at, lane, left, INPUTS[m], ALIGNED) - base,)
    deviations = squared_deviations(deltas)
    store(deviations, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)
    varying = tl.sum(tl.where(deviations == 0.0, 0, 1), 0)
    if varying > 0:
        tl.atomic_add(varying_ptr, varying.to(tl.int64))


def largest_variances(tiles: Tiles, spec: LargestVariances, workspace: Workspace) -> Trim | None:
    """The selection of the k elements whose deltas vary most, for `select`."""
    selection: Trim | None
    ((selection,),) = awaited([largest_variances_batch([(spec, tiles)], workspace)])
    return selection


def largest_variances_batch(jobs: Sequence[_Job], workspace: Workspace) -> Pending:
    """The selection of each job. The host waits for the numbers of elements that vary, for the whole batch once."""
    varying = torch.zeros(len(jobs), dtype=torch.int64, device=workspace.device)
    held: list[list[Tile]] = [[] for _ in jobs]
    bytes_left = workspace.budget_bytes
    complete = [True] * len(jobs)
    for tiles in rounds([tiles for _, tiles in jobs]):
        for job, tile in _deviations(tiles, varying, workspace):
            bytes_left -= tensor_bytes(tile)
            complete[job] &= bytes_left >= 0
            held[job] = [*held[job], tile] if complete[job] else []
    searches: list[tuple[KthMagnitudes, Tiles]] = [
        (
            KthMagnitudes((selected(count, spec.share),), (spec.key,)),
            held[job] if complete[job] else _Deviations(tiles, workspace),
        )
        for job, ((spec, tiles), count) in enumerate(zip(jobs, varying.tolist(), strict=True))
    ]
    found = kth_magnitudes_batch(searches, workspace)
    return Pending(found.values, lambda values: [selection for (selection,) in found.finish(values)])


def _deviations(tiles: list[tuple[int, Tile]], varying: Tensor, workspace: Workspace) -> list[tuple[int, Tile]]:
    """(job, tile) -> (job, tile of its squared deviations), in any order. One launch per layout."""
    derived = []
    made = [(job, tile, torch.empty(len(tile), device=workspace.device)) for job, tile in tiles]
    zeros = torch.zeros(max((len(tile) for _, tile in tiles), default=0), device=workspace.device)
    for layout, group in grouped((Layout.of(tile, out), (job, tile, out)) for job, tile, out in made).items():
        numbers = to_device(np.array([job for job, _, _ in group], dtype=np.int64), workspace.device)
        inputs, outs = [tile for _, tile, _ in group], [out for _, _, out in group]
        launch(_deviations_kernel, layout, inputs, outs, workspace.device, numbers, varying)
        derived += [(job, Tile(tile.start, [out], zeros[: len(tile)], torch.float32)) for job, tile, out in group]
    return derived


class _Deviations:
    """The tiles of the squared deviations of a job, computed in each pass."""

    def __init__(self, tiles: Tiles, workspace: Workspace) -> None:
        self._tiles = tiles
        self._workspace = workspace

    def __iter__(self) -> Iterator[Tile]:
        ignored = torch.zeros(1, dtype=torch.int64, device=self._workspace.device)
        for tile in self._tiles:
            ((_, derived),) = _deviations([(0, tile)], ignored, self._workspace)
            yield derived


def bytes_moved(tile: Tile) -> int:
    """Of the first pass: each input and the base read once, the squared deviations written."""
    return tensor_bytes(tile) + 4 * len(tile)


CLAIMS = {
    "_deviations_kernel": Claim(
        registers={2: 50, 4: 70, 8: 114, 16: 202}, bytes_per_element=bytes_once, divides=lambda constants: True
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """The pass over the inputs; `order_statistics` shows the others."""
    n = 3 * BLOCK + 5
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    varying = torch.zeros(1, dtype=torch.int64)
    return {"squared deviations": lambda workspace: _deviations([(0, tile)], varying, workspace)}
