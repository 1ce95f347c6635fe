"""How measurements of many tensors share launches, and how the host waits once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mergecore_kernels.torch_ops.tile import Tile, Tiles


@dataclass(frozen=True, slots=True)
class Pending:
    """Results that the device is still at work on."""

    values: Tensor
    """[any length] float64 or int64, on the device."""
    finish: Callable[[list[Any]], list[Any]]
    """The values, as Python numbers -> the result of each job, in order. Runs on the host, when it has waited."""


def awaited(pending: Sequence[Pending]) -> list[list[Any]]:
    """The results of each, after one copy to the host for all."""
    words = [one.values.view(torch.int64) for one in pending]
    host = torch.cat(words).cpu() if words else torch.empty(0, dtype=torch.int64)
    parts = torch.split(host, [len(part) for part in words])
    return [one.finish(part.view(one.values.dtype).tolist()) for one, part in zip(pending, parts, strict=True)]


class Peeked:
    """Tiles whose first one can be looked at without a second reading. It stays valid until the next is drawn."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        self._drawn = iter(tiles)
        self.first = next(self._drawn, None)
        self._fresh = True

    def __iter__(self) -> Iterator[Tile]:
        if not self._fresh:
            return iter(self._tiles)
        self._fresh = False
        return self._drawn if self.first is None else chain([self.first], self._drawn)


def rounds(jobs: Sequence[Tiles]) -> Iterator[list[tuple[int, Tile]]]:
    """(number of the job, tile): the first tile of each job, then the second of those that have one, and so on.

    The tiles of a round are valid until the next round is drawn, so its launches must have been made by then.
    """
    drawn = dict(enumerate(map(iter, jobs)))
    while drawn:
        tiles = {job: next(iterator, None) for job, iterator in drawn.items()}
        drawn = {job: iterator for job, iterator in drawn.items() if tiles[job] is not None}
        if drawn:
            yield [(job, tile) for job, tile in tiles.items() if tile is not None]
