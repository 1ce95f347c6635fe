"""All dot products of the inputs, or of their deltas from the base."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.reduction_tree import TreeSums
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
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


def _add_products(tile: Tile, pairs: list[tuple[int, int]], sums: TreeSums, workspace: Workspace) -> None:
    n = len(tile)
    values = load_values(tile, workspace)
    for index, (i, j) in enumerate(pairs):
        sums.add_products(index, values[i], values[j])
    sums.advance(n)


def load_values(tile: Tile, workspace: Workspace) -> list[Tensor]:
    """M x [n] the inputs or deltas, in the compute dtype. In no case may they be changed."""
    n = len(tile)
    values = []
    base = None if tile.base is None else load(tile.base, workspace.take("base", n, tile.compute))
    for i, x in enumerate(tile.inputs):
        buffer = workspace.take(f"input {i}", n, tile.compute)
        values.append(load(x, buffer) if base is None else load_delta(x, base, buffer))
    return values
