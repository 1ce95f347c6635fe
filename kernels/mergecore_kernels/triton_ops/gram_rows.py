"""Gram matrices of the rows of a tensor, in one pass: the kernel of `gram`, with rows as its jobs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.torch_ops.gram import gram_rows as twin
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Peeked
from mergecore_kernels.triton_ops.gram import Share, launch_products, part_of, shares
from mergecore_kernels.triton_ops.launch_table import Layout, row_table
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, finished


def gram_rows(tiles: Tiles, columns: int, workspace: Workspace) -> Tensor:
    """float64 [R, M, M] for a tensor [R, C], C = `columns`: each row treated as a tensor of its own. No wait."""
    peeked = Peeked(tiles)
    if peeked.first is not None and peeked.first.compute == torch.float64:
        return twin(peeked, columns, workspace)
    m, rows = 0, 0
    partials: dict[Share, list[Tensor]] = {}
    for tile in row_tiles(peeked, columns):
        m, rows = len(tile.inputs), rows + len(tile) // columns
        for share in shares(m):
            partials.setdefault(share, []).append(_partials(part_of(tile, share), columns, share, workspace))
    dots = torch.empty(rows, m, m, dtype=torch.float64, device=workspace.device)
    for share, parts in partials.items():
        totals = _totals(torch.cat(parts), rows, len(share.pairs), -(-columns // CHUNK))
        for (i, j), column in zip(share.pairs, totals.unbind(1), strict=True):
            a, b = share.inputs[i], share.inputs[j]
            dots[:, a, b] = dots[:, b, a] = column
    return dots


def _partials(tile: Tile, columns: int, share: Share, workspace: Workspace) -> Tensor:
    """float64 [rows · chunks of a row · pairs · GROUPS]"""
    table = row_table(tile, columns, workspace.device, CHUNK)
    size = table.programs * len(share.pairs) * GROUPS
    partials = torch.empty(size, dtype=torch.float64, device=workspace.device)
    launch_products(table, Layout.of(tile).of_rows(columns), share.pairs, partials)
    return partials


def _totals(partials: Tensor, rows: int, pairs: int, chunks: int) -> Tensor:
    """float64 [rows, pairs]"""
    places = np.arange(rows * chunks) * (pairs * GROUPS)
    row, pair = np.divmod(np.arange(rows * pairs), pairs)
    sums = np.stack([row * chunks, np.full_like(row, chunks), pair * GROUPS], axis=1)
    return finished(partials, places, sums).view(rows, pairs)
