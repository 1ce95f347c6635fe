"""The sum of each delta's magnitudes, before and after its mask."""

from __future__ import annotations

from mergecore_kernels.operations import MagnitudeSums
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.reduction_tree import TreeSums
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


def magnitude_sums(tiles: Tiles, spec: MagnitudeSums, workspace: Workspace) -> list[tuple[float, float]]:
    """[M] (Σ|δ|, Σ|δ| over what the mask keeps). Sums follow `reduction_tree`; what is masked counts as +0."""
    sums = TreeSums(2 * len(spec.masks), workspace)
    for tile in tiles:
        for piece in tile.pieces(PIECE):
            _add_magnitudes(piece, spec, sums, workspace)
    totals = sums.totals()
    return list(zip(totals[0::2], totals[1::2], strict=True))


def _add_magnitudes(tile: Tile, spec: MagnitudeSums, sums: TreeSums, workspace: Workspace) -> None:
    assert tile.base is not None, "magnitudes of deltas need a base"
    n = len(tile)
    base = load(tile.base, workspace.take("base", n, tile.compute))
    delta = workspace.take("term", n, tile.compute)
    for i, (x, mask) in enumerate(zip(tile.inputs, spec.masks, strict=True)):
        load_delta(x, base, delta).abs_()
        sums.add(2 * i, delta)
        apply_mask(delta, mask, tile.start, workspace)
        sums.add(2 * i + 1, delta)
    sums.advance(n)
