"""Weighted sums of the inputs or of their deltas, and plain copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Copy, WeightedColumns, WeightedRows, WeightedSum
from mergecore_kernels.torch_ops.arithmetic import load, load_delta, rounded, store
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.torch_ops.rectangles import Rectangle, rectangles
from mergecore_kernels.torch_ops.tile import CHUNK, Tile
from mergecore_kernels.torch_ops.workspace import Workspace

_PIECE = 4 * CHUNK  # longer than elsewhere, as there are few buffers


def copy(tile: Tile, spec: Copy, out: Tensor, workspace: Workspace) -> None:
    """[n] the only input, cast to the dtype of `out`."""
    for piece in tile.pieces(_PIECE):
        (x,), at = piece.inputs, piece.start - tile.start
        if x.dtype in FLOAT8:  # torch casts float8 to float32 well, but not to 16 bits
            x = load(x, workspace.take("term", len(piece), tile.compute))
        store(x, out[at : at + len(piece)])


def weighted_sum(tile: Tile, spec: WeightedSum, out: Tensor, workspace: Workspace) -> None:
    """[n] w1·x1 + w2·x2 + ..., or base + (w1·(x1 - base) + w2·(x2 - base) + ...).

    Each weight is rounded once to the compute dtype, each product and each sum once too; the sum starts with the first
    product.
    """
    weights = [rounded(weight, tile.compute) for weight in spec.weights]
    for piece in tile.pieces(_PIECE):
        at = piece.start - tile.start
        _weighted_sum(piece, weights, out[at : at + len(piece)], workspace, max(len(piece), 1))


def weighted_rows(tile: Tile, spec: WeightedRows, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights of rows: the tensor is [R, C], and element i has those of row i // C."""
    for part, of_tile, of_out in _rectangles(tile, out, spec.columns):
        rows = slice(part.row, part.row + part.rows)
        weights = [_vector(of_all[rows], of_tile, workspace).view(-1, 1) for of_all in spec.weights]
        _weighted_sum(of_tile, weights, of_out, workspace, part.width)


def weighted_columns(tile: Tile, spec: WeightedColumns, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights of columns: the tensor is [R, C], and element i has those of column i mod C."""
    for part, of_tile, of_out in _rectangles(tile, out, spec.columns):
        columns = slice(part.column, part.end_column)
        weights = [_vector(of_all[columns], of_tile, workspace) for of_all in spec.weights]
        _weighted_sum(of_tile, weights, of_out, workspace, part.width)


def _rectangles(tile: Tile, out: Tensor, columns: int) -> Iterator[tuple[Rectangle, Tile, Tensor]]:
    """The tile and the output in parts that are rectangles of the tensor [R, C]."""
    for piece in tile.pieces(_PIECE):
        first = piece.start - tile.start
        for part in rectangles(piece.start, len(piece), columns):
            yield part, piece.part(part.at, part.end), out[first + part.at : first + part.end]


def _vector(weights: NDArray[np.float64], tile: Tile, workspace: Workspace) -> Tensor:
    """Rounded once to the compute dtype."""
    return torch.as_tensor(weights, dtype=tile.compute, device=workspace.device)


def _weighted_sum(tile: Tile, weights: Sequence[float | Tensor], out: Tensor, workspace: Workspace, width: int) -> None:
    """The weights are numbers, or tensors that fit the elements seen as rows of this width."""
    n = len(tile)
    total = workspace.take("total", n, tile.compute)
    term = workspace.take("term", n, tile.compute)
    base = None if tile.base is None else load(tile.base, workspace.take("base", n, tile.compute))
    for i, (x, weight) in enumerate(zip(tile.inputs, weights, strict=True)):
        target = total if i == 0 else term
        x = load(x, target) if base is None else load_delta(x, base, target)
        torch.mul(x.view(-1, width), weight, out=target.view(-1, width))
        if i > 0:
            total.add_(term)
    if base is not None:
        total.add_(base)
    store(total, out)
