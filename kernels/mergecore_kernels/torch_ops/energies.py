"""The sum of each delta's squares over the selected elements.

Source: Wan et al. 2024, arXiv:2408.07990 (SCE), the step "calculate".
"""

from __future__ import annotations

from mergecore_kernels.operations import Energies
from mergecore_kernels.torch_ops.deltas import load_deltas
from mergecore_kernels.torch_ops.reduction_tree import TreeSums
from mergecore_kernels.torch_ops.tile import PIECE, Tiles
from mergecore_kernels.torch_ops.variances import select
from mergecore_kernels.torch_ops.workspace import Workspace


def energies(tiles: Tiles, spec: Energies, workspace: Workspace) -> list[float]:
    """[M] Σ δ². Squares are rounded to the compute dtype, sums follow `reduction_tree`; what isn't selected is +0."""
    sums: TreeSums | None = None
    for tile in tiles:
        sums = sums or TreeSums(len(tile.inputs), workspace)
        for piece in tile.pieces(PIECE):
            _, deltas = load_deltas(piece, workspace)
            select(deltas, spec.selection, piece.start, workspace)
            for i, delta in enumerate(deltas):
                sums.add_products(i, delta, delta)
            sums.advance(len(piece))
    return sums.totals() if sums else []
