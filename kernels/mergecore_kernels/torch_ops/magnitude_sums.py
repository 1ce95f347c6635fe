"""The sum of each delta's magnitudes, before and after its mask."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mergecore_kernels.operations import MagnitudeSums, row_length, whole_rows
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.reduction_tree import TreeSums
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


def magnitude_sums(tiles: Tiles, spec: MagnitudeSums, workspace: Workspace) -> list[tuple[float, float]]:
    """[M] (Σ|δ|, Σ|δ| over what the mask keeps). Sums follow `reduction_tree`; what is masked counts as +0."""
    sums = TreeSums(2 * len(spec.masks), workspace)
    workspace.kept_bits.begin(spec.masks, workspace.budget_bytes)
    if row_length(spec) == 1:
        for tile in tiles:
            for piece in tile.pieces(PIECE):
                for i, values in _magnitudes(piece, spec, workspace):
                    sums.add(i, values)
                sums.advance(len(piece))
    else:
        # Rows and chunks end in different places.
        for tile in row_tiles(_tiles_of_magnitudes(tiles, spec, workspace), CHUNK):
            for piece in tile.pieces(PIECE):
                for i, values in enumerate(piece.inputs):
                    sums.add(i, values)
                sums.advance(len(piece))
    totals = sums.totals()
    return list(zip(totals[0::2], totals[1::2], strict=True))


def _tiles_of_magnitudes(tiles: Tiles, spec: MagnitudeSums, workspace: Workspace) -> Iterator[Tile]:
    """Tiles of whole rows, with 2 M inputs: |δ| of each model before and after the mask."""
    columns = row_length(spec)
    for tile in row_tiles(tiles, columns):
        for piece in tile.pieces(whole_rows(PIECE, columns)):
            magnitudes = [values.clone() for _, values in _magnitudes(piece, spec, workspace)]
            yield Tile(piece.start, magnitudes, None, piece.compute)


def _magnitudes(tile: Tile, spec: MagnitudeSums, workspace: Workspace) -> Iterator[tuple[int, Tensor]]:
    """(which sum, [n] its values), 2 M times. The values hold until the next ones are drawn."""
    assert tile.base is not None, "magnitudes of deltas need a base"
    n = len(tile)
    base = load(tile.base, workspace.take("base", n, tile.compute))
    delta = workspace.take("term", n, tile.compute)
    for i, (x, mask) in enumerate(zip(tile.inputs, spec.masks, strict=True)):
        yield 2 * i, load_delta(x, base, delta).abs_()
        apply_mask(delta, mask, tile.start, workspace)
        yield 2 * i + 1, delta
