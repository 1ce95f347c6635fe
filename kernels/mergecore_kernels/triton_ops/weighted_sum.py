"""Weighted sums of the inputs or of their deltas, and plain copies: inputs read once, the output written once.

The weights are one number per input and job, or one per row of the tensor. The arithmetic of `torch_ops`: each product
and each sum rounded to float32, in the order of the inputs; one rounding at the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import Copy, WeightedSum
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
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


@triton.jit
def _weighted_sum_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    weights_ptr,  # float32 [jobs, M]; by row int64 [jobs, 3]: address of float32 [M, R], C, R; of a copy nothing
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHTS: tl.constexpr,  # "of tensors", "of rows" or "none"
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    if WEIGHTS == "of rows":
        weights_ptr += job * 3
    else:
        weights_ptr += job * len(INPUTS)
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, weights_ptr, at, whole, INPUTS, BASE, OUT, True, WEIGHTS, BLOCK)
        if whole < left:
            _body(row_ptr, weights_ptr, at + whole, left - whole, INPUTS, BASE, OUT, False, WEIGHTS, TAIL)
    else:
        _body(row_ptr, weights_ptr, at, left, INPUTS, BASE, OUT, False, WEIGHTS, BLOCK)


@triton.jit
def _body(
    row_ptr,
    weights_ptr,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    if WEIGHTS == "of rows":
        weight_ptr, weight_rows = _row_weights(row_ptr, weights_ptr, at, lane)
    if BASE is not None:
        base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    for m in tl.static_range(len(INPUTS)):
        term = load(row_ptr + INPUT_SLOT + m, at, lane, left, INPUTS[m], ALIGNED)
        if BASE is not None:
            term -= base
        if WEIGHTS == "of rows":
            term *= tl.load(weight_ptr + m * weight_rows, mask=lane < left, other=0.0)
        elif WEIGHTS == "of tensors":
            term *= tl.load(weights_ptr + m)
        if m == 0:
            total = term
        else:
            total += term
    if BASE is not None:
        total += base
    store(total, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)


@triton.jit
def _row_weights(row_ptr, weights_ptr, at, lane):
    """[LANES] pointers to the weights of the first input, and R, the distance to those of the next."""
    columns = tl.load(weights_ptr + 1)
    first = tl.load(row_ptr + START) + at
    first_row = first // columns
    # Within the block 32 bits are enough, and a division of 64 bits is slow.
    column = (first - first_row * columns).to(tl.uint32) + lane.to(tl.uint32)
    row = column // columns.to(tl.uint32)
    return tl.load(weights_ptr).to(tl.pointer_type(tl.float32)) + first_row + row, tl.load(weights_ptr + 2)


def copy(tile: Tile, spec: Copy, out: Tensor, workspace: Workspace) -> None:
    """[n] the only input, cast to the dtype of `out`."""
    copy_batch([(spec, tile, out)], workspace)


def copy_batch(jobs: Sequence[tuple[Copy, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout([(None, tile, out) for _, tile, out in jobs]).items():
        _launch(layout, group, torch.empty(0, device=workspace.device), "none", workspace)


def weighted_sum(tile: Tile, spec: WeightedSum, out: Tensor, workspace: Workspace) -> None:
    """[n] w1·x1 + w2·x2 + ..., or base + (w1·(x1 - base) + w2·(x2 - base) + ...)."""
    weighted_sum_batch([(spec, tile, out)], workspace)


def weighted_sum_batch(jobs: Sequence[tuple[WeightedSum, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout(jobs).items():
        weights = torch.tensor([spec.weights for spec, _, _ in group], dtype=torch.float64).to(torch.float32)
        _launch(layout, group, to_device(weights.numpy(), workspace.device), "of tensors", workspace)


RowJob: TypeAlias = tuple[Tile, Tensor, int, Tensor]
"""Tile, weights float32 [M, R] on the device, C, out [n]."""


def weighted_sum_rows(tile: Tile, weights: Tensor, columns: int, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights [M, R] of rows: the tensor is [R, C], C = `columns`."""
    weighted_sum_rows_batch([(tile, weights, columns, out)], workspace)


def weighted_sum_rows_batch(jobs: Sequence[RowJob], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout([((weights, columns), tile, out) for tile, weights, columns, out in jobs]).items():
        for (weights, _), tile, _ in group:
            assert weights.dtype == tile.compute == torch.float32, "kernels compute in float32"
            assert weights.is_contiguous(), "rows of weights are found by their distance R"
        table = [(weights.data_ptr(), columns, weights.shape[1]) for (weights, columns), _, _ in group]
        _launch(layout, group, to_device(np.array(table, dtype=np.int64), workspace.device), "of rows", workspace)


def _by_layout(jobs: Sequence[tuple[Any, Tile, Tensor]]) -> dict[Layout, list[tuple[Any, Tile, Tensor]]]:
    return grouped((Layout.of(tile, out), (spec, tile, out)) for spec, tile, out in jobs)


def _launch(
    layout: Layout, jobs: list[tuple[Any, Tile, Tensor]], weights: Tensor, kind: str, workspace: Workspace
) -> None:
    table = launch_table([tile for _, tile, _ in jobs], [out for _, _, out in jobs], workspace.device)
    if table.programs:
        _weighted_sum_kernel[(table.programs,)](
            table.rows, table.blocks, weights, **layout.constants(), WEIGHTS=kind, BLOCK=BLOCK, **launch_options()
        )


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """Each input, the base and the output once; the tables and weights of rows are small beside them."""
    return tensor_bytes(tile, out)


CLAIMS = {
    "_weighted_sum_kernel": Claim(
        registers={2: 48, 4: 80, 8: 80},
        bytes_per_element=bytes_once,
        divides=lambda constants: constants["WEIGHTS"] == "of rows",
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Every kind of weights; a length that is no multiple of anything."""
    n = 3 * BLOCK + 5
    inputs = [torch.zeros(n, dtype=dtype) for _ in range(m)]
    out, spec = torch.zeros(n, dtype=dtype), WeightedSum((1.0,) * m)
    plain, deltas = Tile(0, inputs, None, torch.float32), Tile(0, inputs, out, torch.float32)
    mixed = Tile(0, [x.to(torch.float32) if i % 2 else x for i, x in enumerate(inputs)], out, torch.float32)
    shown: Examples = {"deltas": lambda workspace: weighted_sum(deltas, spec, out, workspace)}
    if m == 2:
        shown["weights"] = lambda workspace: weighted_sum(plain, spec, out, workspace)
        shown["mixed dtypes"] = lambda workspace: weighted_sum(mixed, spec, out, workspace)
        shown["copy"] = lambda workspace: copy(Tile(0, inputs[:1], None, torch.float32), Copy(), out, workspace)
    if m == 4:
        shown["weights of rows"] = lambda workspace: weighted_sum_rows(deltas, torch.zeros(m, 7), 1000, out, workspace)
    return shown
