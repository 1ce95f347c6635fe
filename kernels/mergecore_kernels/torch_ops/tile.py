"""Tiles: the pieces in which tensors pass through the operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mergecore_kernels.operations import CHUNK as CHUNK

PIECE = 2 * CHUNK
"""Elements that an operation works on at a time: enough to make a call's overhead small, few enough for its buffers to
stay in the cache. Results don't depend on it."""


@dataclass(slots=True)
class Tile:
    """A run of elements of the flattened tensors that are merged."""

    start: int
    """Index of the first element in the flattened tensor; a multiple of CHUNK, or where a combination looks at whole
    rows, of their length."""
    inputs: Sequence[Tensor]
    """M x [n], contiguous, in their storage dtypes, which may differ. n is such a multiple too, except at the end."""
    base: Tensor | None
    """[n], if the operation works on deltas."""
    compute: torch.dtype
    """float32, or float64 where an input is float64."""

    def __len__(self) -> int:
        return self.inputs[0].numel()

    def part(self, first: int, end: int) -> Tile:
        """The elements [first, end) of the tile: views."""
        base = None if self.base is None else self.base[first:end]
        return Tile(self.start + first, [x[first:end] for x in self.inputs], base, self.compute)

    def pieces(self, size: int) -> Iterator[Tile]:
        """The tile in pieces that end at multiples of `size`, itself a multiple of CHUNK or of a row: views."""
        n = len(self)
        at = 0
        while at < n or n == 0:
            end = min(at + size - (self.start + at) % size, n)
            if at == 0 and end == n:
                yield self
                return
            yield self.part(at, end)
            at = end


class Tiles(Protocol):
    """The tiles of one output tensor, in order. Each iteration is one pass over the inputs.

    The tensors of a tile are valid until the next one is drawn: their memory is used again.
    """

    def __iter__(self) -> Iterator[Tile]: ...
