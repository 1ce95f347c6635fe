"""Add a matrix that is given as the product of two thin ones: what a LoRA adapter does to a weight.

The matrix product of a library depends on the machine and on the size of the tile. Here element (i, j) gets
left[i, 0] · right[0, j] + left[i, 1] · right[1, j] + ..., each product and each sum rounded once, in this order, so it
has the same bits wherever it is computed. That takes two operations in the cache per rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.torch_ops.workspace import Workspace

_PIECE = 1 << 15
"""Elements computed at a time: the sum and the term stay in the cache for all ranks."""
_GPU_PIECE = 1 << 22
"""The same on a GPU, where a call must have enough to do."""


def add_low_rank(values: Tensor, start: int, left: Tensor, right: Tensor, workspace: Workspace) -> None:
    """Add to `values` the elements of left @ right from `start` on, in place.

    Shapes: values [n], a run of the flattened [R, C] matrix; left [R, rank], right [rank, C]; all of one dtype.

    Source: Hu et al. 2021, arXiv:2106.09685 (LoRA).
    """
    columns = right.shape[1]
    stop = start + values.numel()
    step = max((_PIECE if values.device.type == "cpu" else _GPU_PIECE) // columns, 1)
    for row in range(start // columns, -(-stop // columns), step):
        rows = left[row : row + step]
        first, end = row * columns, (row + len(rows)) * columns
        low, high = max(start, first), min(stop, end)
        values[low - start : high - start].add_(_product(rows, right, workspace)[low - first : high - first])


def _product(rows: Tensor, right: Tensor, workspace: Workspace) -> Tensor:
    """[R · C] rows @ right, the sum of its outer products. Shapes: rows [R, rank], right [rank, C]."""
    shape = (len(rows), right.shape[1])
    n = shape[0] * shape[1]
    total = workspace.take("low rank total", n, rows.dtype).view(shape)
    term = workspace.take("low rank term", n, rows.dtype).view(shape)
    for k in range(len(right)):
        torch.mul(rows[:, k, None], right[k], out=total if k == 0 else term)
        if k > 0:
            total.add_(term)
    return total.view(-1)
