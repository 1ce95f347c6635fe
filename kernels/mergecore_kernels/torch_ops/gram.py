"""All dot products of the inputs, or of their deltas from the base."""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.reduction_tree import LANES, TreeSums, add_rows, adjacent_pair_tree
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


def gram(tiles: Tiles, spec: Gram, workspace: Workspace) -> list[list[float]]:
    """[M, M] symmetric. Products are rounded to the compute dtype, sums follow `reduction_tree`."""
    sums: TreeSums | None = None
    pairs: list[tuple[int, int]] = []
    count = 0
    for tile in tiles:
        if sums is None:
            count = len(tile.inputs)
            pairs = [(i, j) for i in range(count) for j in range(i, count)]
            sums = TreeSums(len(pairs), workspace)
        for piece in tile.pieces(PIECE):
            _add_products(piece, pairs, sums, workspace)
    dots = [[0.0] * count for _ in range(count)]
    for (i, j), total in zip(pairs, sums.totals() if sums else [], strict=True):
        dots[i][j] = dots[j][i] = total
    return dots


def gram_rows(tiles: Tiles, columns: int, workspace: Workspace) -> Tensor:
    """float64 [R, M, M] for a tensor [R, C], C = `columns`: each row treated as a tensor of its own."""
    parts = []
    for tile in row_tiles(tiles, columns):
        step = max(PIECE // columns, 1) * columns
        for at in range(0, max(len(tile), 1), step):
            base = None if tile.base is None else tile.base[at : at + step]
            piece = Tile(tile.start + at, [x[at : at + step] for x in tile.inputs], base, tile.compute)
            parts.append(_gram_of_rows(piece, columns, workspace))
    return torch.cat(parts)


def _gram_of_rows(tile: Tile, columns: int, workspace: Workspace) -> Tensor:
    values = [x.view(-1, columns) for x in _values(tile, workspace)]
    m = len(values)
    dots = torch.empty(len(values[0]), m, m, dtype=torch.float64, device=workspace.device)
    for i in range(m):
        for j in range(i, m):
            dots[:, i, j] = dots[:, j, i] = _row_sums(values[i] * values[j])
    return dots


def _row_sums(values: Tensor) -> Tensor:
    """[R, C] -> float64 [R], the sums of `reduction_tree`."""
    chunks = torch.split(values, CHUNK, dim=1)
    used = min(1 << (len(chunks) - 1).bit_length(), LANES)  # the other lanes would add zeros
    lanes = torch.zeros(len(values), used, dtype=torch.float64, device=values.device)
    for c, chunk in enumerate(chunks):
        filled = torch.nn.functional.pad(chunk, (0, -chunk.shape[1] % LANES))
        rows = add_rows(filled.view(len(filled), filled.shape[1] // LANES, LANES).transpose(0, 1))
        lanes[:, c % LANES] += adjacent_pair_tree(rows.to(torch.float64))
    return adjacent_pair_tree(lanes)


def _add_products(tile: Tile, pairs: list[tuple[int, int]], sums: TreeSums, workspace: Workspace) -> None:
    n = len(tile)
    values = _values(tile, workspace)
    product = workspace.take("term", n, tile.compute)
    for index, (i, j) in enumerate(pairs):
        sums.add(index, torch.mul(values[i], values[j], out=product))
    sums.advance(n)


def _values(tile: Tile, workspace: Workspace) -> list[Tensor]:
    """M x [n] the inputs or deltas, in the compute dtype."""
    n = len(tile)
    values = []
    base = None if tile.base is None else load(tile.base, workspace.take("base", n, tile.compute))
    for i, x in enumerate(tile.inputs):
        buffer = workspace.take(f"input {i}", n, tile.compute)
        values.append(load(x, buffer) if base is None else load_delta(x, base, buffer))
    return values
