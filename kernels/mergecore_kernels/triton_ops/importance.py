"""How important each delta is to the distribution of its row, and the choice of the important ones: arcee_fusion.

A program finds the divergence of one row, in three passes over it of which two find the row in the cache: the maxima,
the two sums of powers, the sum of the divergence's terms. A row can have any length. That takes up to 300 instructions
per element, so it is bound by arithmetic; the passes after it, with divergences known, are bound by memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import ImportanceQuantiles, Key, KthMagnitudes, TakeImportant
from mergecore_kernels.torch_ops import importance as twin
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.exponential import exp, exp_minus_1, log, polynomial
from mergecore_kernels.triton_ops.launch_table import (
    ALIGNMENT,
    BLOCK,
    Layout,
    grouped,
    launch_options,
    launch_table,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import (
    BASE_SLOT,
    INPUT_SLOT,
    OUT_SLOT,
    START,
    TAIL,
    load,
    locate,
    store,
    whole_part,
)
from mergecore_kernels.triton_ops.order_statistics import kth_magnitudes_batch
from mergecore_kernels.triton_ops.reduction_tree import adjacent_pair_tree

_LEVELS = twin.LANES.bit_length() - 1
_EPSILON, _LOWEST, _SMALL, _SERIES, _LEAST_RATIO = (
    tl.constexpr(x) for x in (twin.EPSILON, twin.LOWEST, twin.SMALL, twin.SERIES, twin.LEAST_RATIO)
)


@triton.jit(do_not_specialize=["columns"])
def _divergences_kernel(
    rows_ptr,  # int64 [tiles, 4 + 1]: see launch_table.py
    blocks_ptr,  # int64 [R, 2]: a program for each row
    divergences_ptr,  # float32 [R]
    columns: tl.int64,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    MULTIPLE: tl.constexpr,  # divides `columns`: what makes 128 bits, where rows are aligned
    LANES: tl.constexpr,
    LEVELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = rows_ptr + tl.load(blocks_ptr + 2 * row) * (INPUT_SLOT + 1)
    first = tl.multiple_of(tl.load(blocks_ptr + 2 * row + 1), MULTIPLE)
    columns = tl.multiple_of(columns, MULTIPLE)
    lane = tl.arange(0, LANES)

    most = tl.full((LANES,), float("-inf"), tl.float32)
    base_most = most
    for at in range(0, columns, LANES):
        left = _left(columns, at, MULTIPLE, LANES)
        x, base = _load_both(row_ptr, first + at, lane, left, INPUTS, BASE, ALIGNED)
        most = tl.maximum(most, tl.where(lane < left, x, float("-inf")))
        base_most = tl.maximum(base_most, tl.where(lane < left, base, float("-inf")))
    x_most, base_most = tl.max(most, 0), tl.max(base_most, 0)

    weights = tl.zeros((LANES,), tl.float32)
    growths = tl.zeros((LANES,), tl.float32)
    for at in range(0, columns, LANES):
        left = _left(columns, at, MULTIPLE, LANES)
        x, base = _load_both(row_ptr, first + at, lane, left, INPUTS, BASE, ALIGNED)
        weight, growth = _powers(x, base, x_most, base_most)
        weights += tl.where(lane < left, weight, 0.0)
        growths += tl.where(lane < left, growth, 0.0)
    sum_weights = adjacent_pair_tree(weights.to(tl.float64), LEVELS)
    sum_growths = adjacent_pair_tree(growths.to(tl.float64), LEVELS)
    mean = (sum_growths / sum_weights).to(tl.float32)
    share = (sum_weights / (sum_weights + sum_growths)).to(tl.float32)
    extra = (sum_weights * _EPSILON).to(tl.float32)

    terms = tl.zeros((LANES,), tl.float32)
    for at in range(0, columns, LANES):
        left = _left(columns, at, MULTIPLE, LANES)
        x, base = _load_both(row_ptr, first + at, lane, left, INPUTS, BASE, ALIGNED)
        weight, growth = _powers(x, base, x_most, base_most)
        term = _terms((growth - weight * mean) * share, weight + extra)
        terms += tl.where(lane < left, term, 0.0)
    sum_terms = adjacent_pair_tree(terms.to(tl.float64), LEVELS)
    tl.store(divergences_ptr + row, (sum_terms / sum_weights).to(tl.float32))


@triton.jit
def _left(columns, at, MULTIPLE: tl.constexpr, LANES: tl.constexpr):
    """int32: elements of the row from `at` on, LANES at most."""
    return tl.multiple_of(tl.minimum(columns - at, LANES).to(tl.int32), MULTIPLE)


@triton.jit
def _load_both(row_ptr, at, lane, left, INPUTS: tl.constexpr, BASE: tl.constexpr, ALIGNED: tl.constexpr):
    """float32 [LANES] of the input and of the base."""
    x = load(row_ptr + INPUT_SLOT, at, lane, left, INPUTS[0], ALIGNED)
    return x, load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)


@triton.jit
def _powers(x, base, x_most, base_most):
    """[LANES] the weights w and the growths g."""
    shift = (x - base) - (x_most - base_most)
    exponent = base - base_most
    near = (exponent >= _LOWEST) & (tl.abs(shift) <= -_LOWEST)  # so not if it is NaN
    x_exponent = x - x_most
    x_exponent = tl.where(x_exponent < _LOWEST, _LOWEST, x_exponent)
    exponent = tl.where(exponent < _LOWEST, _LOWEST, exponent)
    weight = exp(exponent)
    return weight, exp_minus_1(tl.where(near, shift, x_exponent - exponent)) * weight


@triton.jit
def _terms(a, b):
    """[LANES] W times the terms of KL."""
    s = tl.div_rn(a, (b + b) + a)
    series = polynomial(s * s, _SERIES) * s
    terms = (series + series * s + 1.0) * s * a
    large = tl.abs(s) > _SMALL
    if tl.max(large.to(tl.int32), 0) > 0:
        ratio = tl.div_rn(a + b, b)
        ratio = tl.where(ratio < _LEAST_RATIO, _LEAST_RATIO, ratio)
        terms = tl.where(large, (a + b) * log(ratio) - a, terms)
    return terms


@triton.jit
def _importances_kernel(
    rows_ptr,  # int64 [jobs, 4 + 1]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    divergences_ptr,  # int64 [jobs, 2]: address of float32 [R] of the whole tensor, columns
    thresholds_ptr,  # float32 [jobs]; of importances nothing
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    TAKE: tl.constexpr,  # what is important, not the importances
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, 1, BLOCK)
    divergences_ptr += 2 * job
    threshold = tl.load(thresholds_ptr + job) if TAKE else 0.0
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, divergences_ptr, threshold, at, whole, INPUTS, BASE, OUT, True, TAKE, BLOCK)
        if whole < left:
            _body(row_ptr, divergences_ptr, threshold, at + whole, left - whole, INPUTS, BASE, OUT, False, TAKE, TAIL)
    else:
        _body(row_ptr, divergences_ptr, threshold, at, left, INPUTS, BASE, OUT, False, TAKE, BLOCK)


@triton.jit
def _body(
    row_ptr,
    divergences_ptr,
    threshold,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    TAKE: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    x, base = _load_both(row_ptr, at, lane, left, INPUTS, BASE, ALIGNED)
    first, columns = tl.load(row_ptr + START) + at, tl.load(divergences_ptr + 1)
    first_row = first // columns
    # Of one program 32 bits are enough, which are divided faster.
    column = (first - first_row * columns).to(tl.uint32) + lane.to(tl.uint32)
    divergence_ptr = tl.load(divergences_ptr).to(tl.pointer_type(tl.float32)) + first_row
    divergence = tl.load(divergence_ptr + column // columns.to(tl.uint32), mask=lane < left, other=0.0)
    values = tl.abs(x - base) * divergence
    if TAKE:
        values = tl.where(values >= threshold, x, base)
    store(values, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)


@dataclass(frozen=True, slots=True)
class _Job:
    """A tile of which importances are asked for, or what is important."""

    tile: Tile
    out: Tensor
    divergences: Tensor
    """float32 [rows], on the device, from row `begun` on."""
    begun: int
    columns: int
    threshold: float = 0.0


def importance_quantiles(
    tiles: Tiles, spec: ImportanceQuantiles, workspace: Workspace
) -> tuple[tuple[float, ...], NDArray[np.float32]]:
    """The quantiles, exact in float32, and the divergences [R]."""
    found: tuple[tuple[float, ...], NDArray[np.float32]]
    ((found,),) = awaited([importance_quantiles_batch([(spec, tiles)], workspace)])
    return found


def importance_quantiles_batch(jobs: Sequence[tuple[ImportanceQuantiles, Tiles]], workspace: Workspace) -> Pending:
    """Those of each job. The first pass finds divergences and importances; these are kept if the budget allows that.

    If not, each pass of the search for the quantiles reads the tensors again.
    """
    divergences: list[list[Tensor]] = [[torch.empty(0, device=workspace.device)] for _ in jobs]
    held: list[list[Tile]] = [[] for _ in jobs]
    leasts = torch.full((len(jobs),), twin.MOST, device=workspace.device)
    bytes_left, complete = workspace.budget_bytes, [True] * len(jobs)
    for tiles in rounds([row_tiles(tiles, spec.columns) for spec, tiles in jobs]):
        found = _divergences([(jobs[job][0].columns, tile) for job, tile in tiles], workspace)
        parts = [
            _job(tile, divergence, tile.start // jobs[job][0].columns, jobs[job][0].columns)
            for (job, tile), divergence in zip(tiles, found, strict=True)
        ]
        _launch(parts, take=False, workspace=workspace)
        for (job, tile), part in zip(tiles, parts, strict=True):
            divergences[job].append(part.divergences)
            if jobs[job][0].wants_least and len(tile):
                leasts[job] = torch.minimum(leasts[job], twin.least(part.out))
            derived = _derived(part, workspace)
            bytes_left -= tensor_bytes(derived)
            complete[job] &= bytes_left >= 0
            held[job] = [*held[job], derived] if complete[job] else []
    of_jobs = [torch.cat(parts) for parts in divergences]
    searches: list[tuple[KthMagnitudes, Tiles]] = [
        (
            KthMagnitudes(spec.kept, (Key(""),) * len(spec.kept)),
            held[job] if complete[job] else _Importances(tiles, of_jobs[job], spec.columns, workspace),
        )
        for job, (spec, tiles) in enumerate(jobs)
    ]
    trims = kth_magnitudes_batch(searches, workspace)
    floats = torch.cat([leasts, *of_jobs]).to(torch.float64)

    def finish(fields: list[int]) -> list[tuple[tuple[float, ...], NDArray[np.float32]]]:
        states, words = fields[: len(trims.values)], np.array(fields[len(trims.values) :], dtype=np.int64)
        values = words.view(np.float64).astype(np.float32)
        ends = len(jobs) + np.cumsum([len(part) for part in of_jobs])
        return [
            (tuple(float(values[job]) if trim is None else trim.magnitude for trim in of_job), values[end - rows : end])
            for job, (of_job, end, rows) in enumerate(zip(trims.finish(states), ends, map(len, of_jobs), strict=True))
        ]

    return Pending(torch.cat([trims.values, floats.view(torch.int64)]), finish)


class _Importances:
    """The tiles of a job's importances, computed in each pass."""

    def __init__(self, tiles: Tiles, divergences: Tensor, columns: int, workspace: Workspace) -> None:
        self._tiles, self._divergences, self._columns, self._workspace = tiles, divergences, columns, workspace

    def __iter__(self) -> Iterator[Tile]:
        for tile in self._tiles:
            job = _job(tile, self._divergences, 0, self._columns)
            _launch([job], take=False, workspace=self._workspace)
            yield _derived(job, self._workspace)


def _job(tile: Tile, divergences: Tensor, begun: int, columns: int) -> _Job:
    """Asks for importances."""
    return _Job(tile, torch.empty(len(tile), device=divergences.device), divergences, begun, columns)


def _derived(job: _Job, workspace: Workspace) -> Tile:
    """The importances as deltas, from zeros that tiles share."""
    zeros = workspace.take("importance base", len(job.tile), torch.float32).zero_()
    return Tile(job.tile.start, [job.out], zeros, torch.float32)


def _divergences(parts: Sequence[tuple[int, Tile]], workspace: Workspace) -> list[Tensor]:
    """float32 [rows of the tile] for (columns, a tile of whole rows). One launch per layout and number of columns."""
    found: list[Tensor] = [torch.empty(0)] * len(parts)
    kinds = (((Layout.of(tile).of_rows(columns), columns), (i, tile)) for i, (columns, tile) in enumerate(parts))
    for (layout, columns), group in grouped(kinds).items():
        assert layout.base is not None, "importance needs a base"
        table = launch_table([tile for _, tile in group], None, workspace.device, columns)
        result = torch.empty(table.programs, device=workspace.device)
        if table.programs:
            _divergences_kernel[(table.programs,)](
                table.rows,
                table.blocks,
                result,
                columns,
                **layout.constants(),
                MULTIPLE=ALIGNMENT // min(layout.inputs[0].itemsize, layout.base.itemsize) if layout.aligned else 1,
                LANES=twin.LANES,
                LEVELS=_LEVELS,
                **launch_options(twin.LANES),
            )
        for (i, _), divergences in zip(
            group, torch.split(result, [len(tile) // columns for _, tile in group]), strict=True
        ):
            found[i] = divergences
    return found


def take_important(tile: Tile, spec: TakeImportant, out: Tensor, workspace: Workspace) -> None:
    """[n] the input where its importance is at least the threshold, else the base."""
    take_important_batch([(spec, tile, out)], workspace)


def take_important_batch(jobs: Sequence[tuple[TakeImportant, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    parts = []
    for spec, tile, out in jobs:
        rows = slice(tile.start // spec.columns, -(-(tile.start + len(tile)) // spec.columns))
        divergences = to_device(spec.divergences[rows], workspace.device)
        parts.append(_Job(tile, out, divergences, rows.start, spec.columns, spec.threshold))
    _launch(parts, take=True, workspace=workspace)


def _launch(jobs: Sequence[_Job], take: bool, workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in grouped((Layout.of(job.tile, job.out), job) for job in jobs).items():
        assert layout.base is not None, "importance needs a base"
        table = launch_table([job.tile for job in group], [job.out for job in group], workspace.device)
        begins = [job.divergences.data_ptr() - job.begun * job.divergences.itemsize for job in group]
        divergences = np.stack([begins, [job.columns for job in group]], axis=1)
        thresholds = torch.tensor([job.threshold for job in group], dtype=torch.float64).to(torch.float32)
        if table.programs:
            _importances_kernel[(table.programs,)](
                table.rows,
                table.blocks,
                to_device(divergences, workspace.device),
                to_device(thresholds.numpy(), workspace.device),
                **layout.constants(),
                TAKE=take,
                BLOCK=BLOCK,
                **launch_options(),
            )


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """Of the choice: the input, the base and the output once, which is the least possible."""
    return tensor_bytes(tile, out)


CLAIMS = {
    # Two of the three passes find the row in the cache.
    "_divergences_kernel": Claim(
        registers={2: 108},
        bytes_per_element=lambda constants: 3 * bytes_once(constants),
        divides=lambda constants: True,
    ),
    "_importances_kernel": Claim(registers={2: 68}, bytes_per_element=bytes_once, divides=lambda constants: True),
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """There is one input, so they are shown for one m."""
    if m != 2:
        return {}
    rows, columns = 5, 1000
    x, base = torch.zeros(rows * columns, dtype=dtype), torch.zeros(rows * columns, dtype=dtype)
    tile, mixed = (Tile(0, [one], base, torch.float32) for one in (x, x.to(torch.float32)))
    spec = TakeImportant(0.0, np.zeros(rows, dtype=np.float32), columns)
    job = _job(tile, torch.zeros(rows), 0, columns)
    return {
        "divergences": lambda workspace: _divergences([(columns, tile)], workspace),
        "importances": lambda workspace: _launch([job], take=False, workspace=workspace),
        "choice": lambda workspace: take_important(tile, spec, base, workspace),
        "divergences, mixed dtypes": lambda workspace: _divergences([(columns, mixed)], workspace),
        "choice, mixed dtypes": lambda workspace: take_important(mixed, spec, base, workspace),
    }
