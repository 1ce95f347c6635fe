"""Tiles: the pieces in which tensors pass through the operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 65_536
"""Elements. Reductions are defined on chunks counted from the tensor's start, so tiles are whole chunks."""


@dataclass(slots=True)
class Tile:
    """A run of elements of the flattened tensors that are merged."""

    start: int
    """Index of the first element in the flattened tensor; a multiple of CHUNK."""
    inputs: Sequence[Tensor]
    """M x [n], contiguous, in their storage dtypes, which may differ. n is a multiple of CHUNK except at the end."""
    base: Tensor | None
    """[n], if the operation works on deltas."""
    compute: torch.dtype
    """float32, or float64 where an input is float64."""

    def __len__(self) -> int:
        return self.inputs[0].numel()

    def chunks(self) -> Iterator[Tile]:
        """The tile in pieces of CHUNK elements: views, small enough for their buffers to stay in the cache."""
        n = len(self)
        if n <= CHUNK:
            yield self
            return
        for at in range(0, n, CHUNK):
            piece = slice(at, at + CHUNK)
            base = None if self.base is None else self.base[piece]
            yield Tile(self.start + at, [x[piece] for x in self.inputs], base, self.compute)


class Tiles(Protocol):
    """The tiles of one output tensor, in order. Each iteration is one pass over the inputs.

    The tensors of a tile are valid until the next one is drawn: their memory is used again.
    """

    def __iter__(self) -> Iterator[Tile]: ...
