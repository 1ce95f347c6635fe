"""Gram matrices of the rows of a tensor, in one pass: the kernel of `gram`, with rows as its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import GramRows
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited
from mergecore_kernels.triton_ops.gram import Share, launch_products, part_of, pending_arrays, shares
from mergecore_kernels.triton_ops.launch_table import Layout, row_table
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, finished


def gram_rows(tiles: Tiles, spec: GramRows, workspace: Workspace) -> list[list[NDArray[np.float64]]]:
    """[M, M] symmetric, of arrays [R]: each row is treated as a tensor of its own."""
    dots: list[list[Any]] = awaited([gram_rows_batch([(spec, tiles)], workspace)])[0][0]
    return dots


def gram_rows_batch(jobs: Sequence[tuple[GramRows, Tiles]], workspace: Workspace) -> Pending:
    """[M, M] of arrays for each job. A launch per tile and one per job for the tree, no wait."""
    return pending_arrays([_sums(tiles, spec.columns, workspace) for spec, tiles in jobs])


def _sums(tiles: Tiles, columns: int, workspace: Workspace) -> tuple[int, Tensor]:
    """M, and float64 [pairs, R], the pairs of one share after another."""
    m, rows = 0, 0
    partials: dict[Share, list[Tensor]] = {}
    for tile in row_tiles(tiles, columns):
        m, rows = len(tile.inputs), rows + len(tile) // columns
        for share in shares(m):
            partials.setdefault(share, []).append(_partials(part_of(tile, share), columns, share, workspace))
    totals = [
        _totals(torch.cat(parts), rows, len(share.pairs), -(-columns // CHUNK)) for share, parts in partials.items()
    ]
    return m, torch.cat(totals) if totals else torch.empty(0, 0, dtype=torch.float64, device=workspace.device)


def _partials(tile: Tile, columns: int, share: Share, workspace: Workspace) -> Tensor:
    """float64 [rows · chunks of a row · pairs · GROUPS]"""
    table = row_table(tile, columns, workspace.device, CHUNK)
    size = table.programs * len(share.pairs) * GROUPS
    partials = torch.empty(size, dtype=torch.float64, device=workspace.device)
    launch_products(table, Layout.of(tile).of_rows(columns), share.pairs, partials)
    return partials


def _totals(partials: Tensor, rows: int, pairs: int, chunks: int) -> Tensor:
    """float64 [pairs, rows]"""
    places = np.arange(rows * chunks) * (pairs * GROUPS)
    pair, row = np.divmod(np.arange(pairs * rows), rows)
    sums = np.stack([row * chunks, np.full_like(row, chunks), pair * GROUPS], axis=1)
    return finished(partials, places, sums).view(pairs, rows)
