"""Gram matrices of the rows of a tensor: each row is treated as a tensor of its own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import GramRows
from mergecore_kernels.torch_ops.gram import load_values
from mergecore_kernels.torch_ops.reduction_tree import LANES, adjacent_pair_tree
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


def gram_rows(tiles: Tiles, spec: GramRows, workspace: Workspace) -> list[list[NDArray[np.float64]]]:
    """[M, M] symmetric, of arrays [R]. Products are rounded to the compute dtype, the sums of a row follow
    `reduction_tree`, counted from the row's start.
    """
    parts = []
    for tile in row_tiles(tiles, spec.columns):
        step = max(PIECE // spec.columns, 1) * spec.columns
        for at in range(0, max(len(tile), 1), step):
            parts.append(_gram_of_rows(tile.part(at, at + step), spec.columns, workspace))
    if not parts:
        return []
    return [list(row) for row in torch.cat(parts, dim=2).cpu().numpy()]


def _gram_of_rows(tile: Tile, columns: int, workspace: Workspace) -> Tensor:
    """float64 [M, M, rows]"""
    values = [x.view(-1, columns) for x in load_values(tile, workspace)]
    m = len(values)
    product = workspace.take("term", len(tile), tile.compute).view(-1, columns)
    dots = torch.empty(m, m, len(values[0]), dtype=torch.float64, device=workspace.device)
    for i in range(m):
        for j in range(i, m):
            dots[i, j] = dots[j, i] = _row_sums(torch.mul(values[i], values[j], out=product), workspace)
    return dots


def _row_sums(values: Tensor, workspace: Workspace) -> Tensor:
    """[R, C] -> float64 [R], the sums of `reduction_tree`. Lanes that would only add zeros are left out."""
    rows, columns = values.shape
    width = _used(columns)
    chunks = torch.split(values, CHUNK, dim=1)
    totals = torch.zeros(rows, _used(len(chunks)), dtype=torch.float64, device=values.device)
    lanes = workspace.take("lanes of rows", rows * width, values.dtype).view(rows, width)
    wide = workspace.take("tree of rows", rows * width, torch.float64).view(rows, width)
    for c, chunk in enumerate(chunks):
        lanes.zero_()
        for part in torch.split(chunk, width, dim=1):
            lanes[:, : part.shape[1]] += part
        totals[:, c % LANES] += _tree(wide.copy_(lanes), workspace)
    return adjacent_pair_tree(totals)


def _tree(values: Tensor, workspace: Workspace) -> Tensor:
    """float64 [R, a power of two] -> [R]: `adjacent_pair_tree` in buffers, as fresh memory costs more than the sums."""
    rows, width = values.shape
    buffers = values.view(-1), workspace.take("half tree of rows", values.numel() // 2, torch.float64)
    for level in range(1, width.bit_length()):
        half = width >> level
        halved = buffers[level % 2][: rows * half].view(rows, half)
        values = torch.add(values[:, 0::2], values[:, 1::2], out=halved)
    return values[:, 0]


def _used(values: int) -> int:
    """Lanes that so many values come to, as a power of two."""
    return min(1 << (values - 1).bit_length(), LANES)
