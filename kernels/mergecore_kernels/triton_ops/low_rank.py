"""Add a matrix that is given as the product of two thin ones: what a LoRA adapter does to a weight, in one pass.

A program has a block of the matrix in registers. Per rank it loads a piece of a column of one factor and a piece of a
row of the other, mostly from the cache, and multiplies and adds each element: two instructions, as they aren't fused.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.torch_ops.low_rank import add_low_rank as add_low_rank_twin
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim, Examples
from mergecore_kernels.triton_ops.launch_table import launch_options

_ROWS, _COLUMNS = 16, 128
"""Of a block."""


@triton.jit
def _add_low_rank_kernel(
    values_ptr,  # float32 [n]: a run of the flattened matrix
    left_ptr,  # float32 [R, rank]
    right_ptr,  # float32 [rank, C]
    start,  # index of the run's first element in the matrix
    first_row,  # its row
    n,
    columns,  # C
    rank,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = first_row + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    left_ptr += row * rank
    right_ptr += column
    row_exists = row * columns < start + n
    column_exists = column < columns
    # The sum begins with the first term: 0 + -0 would be another zero.
    total = _term(left_ptr, right_ptr, row_exists, column_exists)
    for _ in range(1, rank):
        left_ptr += 1
        right_ptr += columns
        total += _term(left_ptr, right_ptr, row_exists, column_exists)
    at = row[:, None] * columns + column[None, :] - start
    live = column_exists[None, :] & (at >= 0) & (at < n)
    values = tl.load(values_ptr + at, mask=live)
    tl.store(values_ptr + at, values + total, mask=live)


@triton.jit
def _term(
    left_ptr,  # pointers [ROWS]
    right_ptr,  # pointers [COLUMNS]
    row_exists,  # bool [ROWS]
    column_exists,  # bool [COLUMNS]
):
    """float32 [ROWS, COLUMNS]"""
    left = tl.load(left_ptr, mask=row_exists, other=0.0)
    right = tl.load(right_ptr, mask=column_exists, other=0.0)
    return left[:, None] * right[None, :]


def add_low_rank(values: Tensor, start: int, left: Tensor, right: Tensor, workspace: Workspace) -> None:
    """Add to `values` the elements of left @ right from `start` on, in place: as in `torch_ops`.

    Shapes: values [n], a run of the flattened [R, C] matrix; left [R, rank], right [rank, C]; contiguous, all of one
    dtype. The host doesn't wait.
    """
    if values.dtype == torch.float64:
        add_low_rank_twin(values, start, left, right, workspace)
        return
    n, columns = values.numel(), right.shape[1]
    first_row, end_row = start // columns, triton.cdiv(start + n, columns)
    if n:
        _add_low_rank_kernel[(triton.cdiv(end_row - first_row, _ROWS), triton.cdiv(columns, _COLUMNS))](
            values, left, right, start, first_row, n, columns, len(right),
            ROWS=_ROWS, COLUMNS=_COLUMNS, **launch_options(_ROWS * _COLUMNS),
        )  # fmt: skip


CLAIMS = {
    # Beside the tensor it reads the factors, whose share depends on the rank.
    "_add_low_rank_kernel": Claim(registers={2: 86}, bytes_per_element=None),
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """In float32, which the values have here; the number of models plays no part."""
    if m != 2 or dtype != torch.bfloat16:
        return {}
    return {"rank 16": partial(_example, 256, 16), "odd rank and rows": partial(_example, 301, 3)}


def _example(columns: int, rank: int, workspace: Workspace) -> None:
    left, right = torch.zeros(64, rank), torch.zeros(rank, columns)
    add_low_rank(torch.zeros(64 * columns), 0, left, right, workspace)
