"""Tiles of whole rows, for what is measured row by row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mergecore_kernels.torch_ops.tile import Tile, Tiles


def row_tiles(tiles: Tiles, columns: int) -> Iterator[Tile]:
    """The same elements in tiles of one or more whole rows of so many columns; the last row may be a part of one.

    They are views, but for rows that lie across the tiles' ends, which are put together in new memory.
    """
    begun: Tile | None = None
    for tile in tiles:
        n = len(tile)
        missing = min(-tile.start % columns, n)
        if missing:
            assert begun is not None, "the tiles begin at the tensor's start and leave nothing out"
            begun = _joined(begun, tile.part(0, missing))
            if len(begun) == columns:
                yield begun
        whole = n - (n - missing) % columns
        if whole > missing or n == 0:
            yield tile.part(missing, whole)
        if whole < n:
            begun = _joined(tile.part(whole, n))
    if begun is not None and len(begun) % columns:
        yield begun


def _joined(*tiles: Tile) -> Tile:
    """A copy of the tiles, one after another."""
    inputs = [torch.cat(parts) for parts in zip(*(tile.inputs for tile in tiles), strict=True)]
    bases = [tile.base for tile in tiles if tile.base is not None]
    return Tile(tiles[0].start, inputs, torch.cat(bases) if bases else None, tiles[0].compute)
