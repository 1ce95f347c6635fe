"""Weighted sums of the inputs or of their deltas, and plain copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergecore_kernels.operations import Copy, WeightedSum
from mergecore_kernels.torch_ops.arithmetic import load, load_delta, rounded, store
from mergecore_kernels.torch_ops.tile import CHUNK, Tile
from mergecore_kernels.torch_ops.workspace import Workspace

_PIECE = 4 * CHUNK  # longer than elsewhere, as there are few buffers


def copy(tile: Tile, spec: Copy, out: Tensor, workspace: Workspace) -> None:
    """[n] the only input, cast to the dtype of `out`."""
    (x,) = tile.inputs
    store(x, out)


def weighted_sum(tile: Tile, spec: WeightedSum, out: Tensor, workspace: Workspace) -> None:
    """[n] w1·x1 + w2·x2 + ..., or base + (w1·(x1 - base) + w2·(x2 - base) + ...).

    Each weight is rounded once to the compute dtype, each product and each sum once too; the sum starts with the first
    product.
    """
    weights = [rounded(weight, tile.compute) for weight in spec.weights]
    for piece in tile.pieces(_PIECE):
        at = piece.start - tile.start
        _weighted_sum(piece, weights, out[at : at + len(piece)], workspace)


def weighted_sum_rows(tile: Tile, weights: Tensor, columns: int, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights of rows: the tensor is [R, C], C = `columns`, and element i has those of row i // C.

    Shapes: weights [M, R], of the compute dtype, for the whole tensor.
    """
    for piece in tile.pieces(_PIECE):
        at, n = piece.start - tile.start, len(piece)
        first, skipped = divmod(piece.start, columns)
        rows = weights[:, first : -(-(piece.start + n) // columns)]
        of_elements = [row.repeat_interleave(columns)[skipped : skipped + n] for row in rows]
        _weighted_sum(piece, of_elements, out[at : at + n], workspace)


def _weighted_sum(tile: Tile, weights: Sequence[float | Tensor], out: Tensor, workspace: Workspace) -> None:
    n = len(tile)
    total = workspace.take("total", n, tile.compute)
    term = workspace.take("term", n, tile.compute)
    base = None if tile.base is None else load(tile.base, workspace.take("base", n, tile.compute))
    for i, (x, weight) in enumerate(zip(tile.inputs, weights, strict=True)):
        target = total if i == 0 else term
        if base is not None:
            load_delta(x, base, target).mul_(weight)
        else:
            torch.mul(load(x, target), weight, out=target)
        if i > 0:
            total.add_(term)
    if base is not None:
        total.add_(base)
    store(total, out)
