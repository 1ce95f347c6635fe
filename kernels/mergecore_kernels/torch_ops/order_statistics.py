"""The k-th largest magnitude of each delta, exact, in a bounded amount of memory.

A pass looks at an interval of the rank order (`sieve`): it counts what comes before it and what is in it, and gathers
the latter. If all of that fits into the budget, the k-th is selected from it. If not, what was gathered is a sample, and
tells a far narrower interval for the next pass. The first pass looks at a sample of everything, the second usually
gathers a few per cent of the elements and is the last one. Counts are exact: if the k-th lies outside of an interval that
was guessed, that is seen, and the search goes on beside it.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.counter_hash import WORD
from mergecore_kernels.torch_ops.sieve import EVERYTHING, INFINITY, ZERO, Interval, Sieve
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

_SAMPLE = 1 << 17
"""Members that the first pass gathers: enough for an interval of 3 %."""
_FEWEST = 1 << 10
"""Members gathered however small the budget, so that each pass narrows the interval."""
_SPREAD = 6.0
"""Half the width of a guessed interval, in standard deviations of the rank of a sampled element."""


def kth_magnitudes(tiles: Tiles, spec: KthMagnitudes, workspace: Workspace) -> tuple[Trim | None, ...]:
    """[M] trims that keep exactly k elements each. Magnitudes are |δ| as float32.

    Equals: those with the smallest hashes are kept. Beyond 2³² elements two may have the same magnitude and hash; if
        they are the k-th, both are kept.
    Zeros:  if the k-th magnitude is zero the trim keeps all zeros, which changes nothing, and costs no hash.
    NaN and Inf are larger than every finite magnitude and never trimmed: if there are k of them, all are kept.
    k = N gives None; k = 0 gives an infinite magnitude, without a look at the tiles.
    """
    searches = [_Search(kept, key) for kept, key in zip(spec.kept, spec.keys, strict=True)]
    while active := [i for i, search in enumerate(searches) if not search.done]:
        sieves = {i: searches[i].sieve(f"members {i}", len(active), workspace) for i in active}
        for tile in tiles:
            for piece in tile.chunks():
                _add_magnitudes(piece, sieves, workspace)
        for i, sieve in sieves.items():
            searches[i].learn(sieve)
    return tuple(search.trim for search in searches)


def _add_magnitudes(tile: Tile, sieves: dict[int, Sieve], workspace: Workspace) -> None:
    assert tile.base is not None, "magnitudes of deltas need a base"
    n = len(tile)
    base = load(tile.base, workspace.take("base", n, tile.compute))
    delta = workspace.take("term", n, tile.compute)
    for i, sieve in sieves.items():
        magnitude = load_delta(tile.inputs[i], base, delta).abs_()
        if magnitude.dtype == torch.float64:
            magnitude = magnitude.to(torch.float32)
        sieve.add(magnitude.view(torch.int32), tile.start)


class _Search:
    """The search for one delta's k-th magnitude: what is known, and where to look next."""

    def __init__(self, k: int, key: Key) -> None:
        self.k = k
        self.key = key
        self.done = k == 0
        self.trim: Trim | None = Trim(float("inf"), 0, key) if k == 0 else None
        self._certain = EVERYTHING
        self._guess = EVERYTHING
        self._expected = _SAMPLE  # members of the guess

    def sieve(self, name: str, searches: int, workspace: Workspace) -> Sieve:
        """For the next pass, in its share of the budget."""
        # In torch a selection is a sort, and takes three times the room of what it sorts.
        bytes_per_member = 8 if workspace.use_numpy else 32
        share = max(workspace.budget_bytes // (bytes_per_member * searches), _FEWEST)
        wanted = _SAMPLE if self._guess == EVERYTHING else max(2 * self._expected, _SAMPLE)
        members = workspace.take(name, min(share, wanted), torch.int64)
        return Sieve(self._guess, self.key, members, workspace)

    def learn(self, sieve: Sieve) -> None:
        """Take in what the pass found."""
        interval, rank = sieve.interval, self.k - sieve.before
        if interval == EVERYTHING and self.k >= sieve.inside:
            if self.k > sieve.inside:
                raise ValueError(f"the {self.k}-th largest of {sieve.inside} elements was asked for")
            self.done = True
        elif rank < 1:
            self._look_at(Interval(self._certain.low, interval.low - 1))
        elif rank > sieve.inside:
            self._look_at(Interval(interval.high + 1, self._certain.high))
        elif sieve.stride == 1:
            self._finish(_select(sieve.members, [rank - 1])[0])
        else:
            self._certain = interval
            self._guess_from(sieve, rank)

    def _look_at(self, interval: Interval) -> None:
        """Search all of an interval that has the k-th in it for certain."""
        if interval.low >= ZERO:
            self._finish(ZERO)
            return
        self._certain = interval
        self._guess = Interval(interval.low, min(interval.high, ZERO - 1))
        self._expected = _SAMPLE

    def _guess_from(self, sieve: Sieve, rank: int) -> None:
        """Choose the interval around the rank's place in the sample."""
        size = sieve.members.numel()
        place = (rank - 0.5) / sieve.inside
        margin = _SPREAD * sqrt(size * place * (1.0 - place)) + 16.0
        first, last = int(place * size - margin), int(place * size + margin)
        low, high = _select(sieve.members, [max(first, 0), min(last, size - 1)])
        self._guess = Interval(
            min(low, ZERO - 1) if first > 0 else sieve.interval.low,
            min(high if last < size - 1 else sieve.interval.high, ZERO - 1),
        )
        self._expected = int(2 * margin / size * sieve.inside)

    def _finish(self, composite: int) -> None:
        self.done = True
        bits = INFINITY - (composite >> 32)
        if bits == INFINITY:
            self.trim = Trim(float(np.finfo(np.float32).max), HASH_RANGE - 1, self.key)
        elif bits == 0:
            self.trim = Trim(0.0, HASH_RANGE - 1, self.key)
        else:
            self.trim = Trim(float(np.int32(bits).view(np.float32)), composite & WORD, self.key)


def _select(members: Tensor, ranks: list[int]) -> list[int]:
    """The members of the given ranks, counted from 0. Reorders the members."""
    if members.device.type == "cpu":
        words = members.numpy()
        words.partition(ranks)
        return [int(words[rank]) for rank in ranks]
    ordered = torch.sort(members).values
    return [int(ordered[rank]) for rank in ranks]
