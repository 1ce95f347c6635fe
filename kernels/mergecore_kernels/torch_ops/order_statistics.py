"""The k-th largest magnitude of each delta, exact, in a bounded amount of memory.

The first pass takes a sample of the rank order (`sieve`), which tells a narrow interval around rank k. The next pass
counts what comes before the interval and gathers what is in it, a few per cent of all elements. If that fits into the
budget, the k-th is selected from it, and usually this is so. If not, every second member was let go as often as it
took: what is left is a sample, which tells a narrower interval. Counts are exact, so an interval that missed
rank k is noticed, and the search goes on beside it.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops.arithmetic import load, load_delta
from mergecore_kernels.torch_ops.counter_hash import WORD
from mergecore_kernels.torch_ops.kept_bits import PackedFlags
from mergecore_kernels.torch_ops.rank_order import RankOrder
from mergecore_kernels.torch_ops.sieve import INFINITY, ZERO, Interval, Sample, Sieve
from mergecore_kernels.torch_ops.tile import PIECE, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

SAMPLE = 1 << 17
"""Elements that the first pass looks at, at most: enough for an interval of 3 %."""
FEWEST = 1 << 10
"""Elements gathered however small the budget, so that each pass narrows the interval."""
SPREAD = 4.5
"""Half the width of a guessed interval, in standard deviations of the rank of a sampled element."""


def kth_magnitudes(tiles: Tiles, spec: KthMagnitudes, workspace: Workspace) -> tuple[Trim | None, ...]:
    """[as many as `spec.kept`] trims that keep exactly k elements each. Magnitudes are |δ| as float32.

    Equals: those with the smallest hashes are kept. Beyond 2³² elements two may share magnitude and hash; if they are
        the k-th, both are kept.
    Zeros:  if the k-th magnitude is zero the trim keeps all zeros, which changes nothing and needs no hash.
    NaN and Inf are larger than every finite magnitude and never trimmed: if there are k of them, all are kept.
    k = N gives None; k = 0 gives an infinite magnitude, without a look at the tiles.
    """
    workspace.kept_bits.forget()
    searches = [_Search(kept, key) for kept, key in zip(spec.kept, spec.keys, strict=True)]
    _sample_pass(tiles, {i: search for i, search in enumerate(searches) if not search.done}, workspace)
    while active := {i: search for i, search in enumerate(searches) if not search.done}:
        _sieve_pass(tiles, active, workspace)
    return tuple(search.trim for search in searches)


def _sample_pass(tiles: Tiles, searches: dict[int, _Search], workspace: Workspace) -> None:
    if not searches:
        return
    buffers = _buffers(searches, workspace)
    samples = {i: Sample(search.key, buffers[i], workspace, at_least=search.k) for i, search in searches.items()}
    for tile in tiles:
        for i, sample in samples.items():
            # A complete sample is the answer, so its hashes must be exact, which they are piece by piece.
            for piece in tile.pieces(PIECE) if sample.gathering.stride == 1 else [tile]:
                assert piece.base is not None, "magnitudes of deltas need a base"
                sample.add(piece.inputs[i % len(piece.inputs)], piece.base, piece.start, piece.compute)
    for i, sample in samples.items():
        searches[i].begin(sample)


def _sieve_pass(tiles: Tiles, searches: dict[int, _Search], workspace: Workspace) -> None:
    buffers = _buffers(searches, workspace)
    room_bytes = (workspace.budget_bytes - sum(buffer.nbytes for buffer in buffers.values())) // len(searches)
    orders = {i: RankOrder(room_bytes) for i in searches}
    sieves = {i: search.sieve(buffers[i], workspace, orders[i]) for i, search in searches.items()}
    for tile in tiles:
        for piece in tile.pieces(PIECE):
            assert piece.base is not None, "magnitudes of deltas need a base"
            base = load(piece.base, workspace.take("base", len(piece), piece.compute))
            delta = workspace.take("term", len(piece), piece.compute)
            for i, sieve in sieves.items():
                magnitude = load_delta(piece.inputs[i % len(piece.inputs)], base, delta).abs_().to(torch.float32)
                sieve.add(magnitude.view(torch.int32), piece.start)
    for i, sieve in sieves.items():
        kept = searches[i].narrow(sieve, orders[i])
        if kept is not None:
            workspace.kept_bits.learn(searches[i].trim, kept)


def _buffers(searches: dict[int, _Search], workspace: Workspace) -> dict[int, Tensor]:
    """For each search int64 [capacity], parts of one buffer within the budget."""
    # torch selects by sorting, which takes three times the room of what it sorts.
    bytes_per_member = 8 if workspace.use_numpy else 32
    share = max(workspace.budget_bytes // (bytes_per_member * len(searches)), FEWEST)
    sizes = [min(search.expected, share) for search in searches.values()]
    parts = torch.split(workspace.take("members", sum(sizes), torch.int64), sizes)
    return dict(zip(searches, parts, strict=True))


class _Search:
    """The search for one delta's k-th magnitude: what is known, and where to look next."""

    def __init__(self, k: int, key: Key) -> None:
        self.key = key
        self.done = k == 0
        self.trim: Trim | None = Trim(float("inf"), 0, key) if k == 0 else None
        self.expected = SAMPLE
        """Members that the next pass should have room for."""
        self.k = k
        """Elements that are kept."""
        self._certain = Interval(0, ZERO)  # has rank k in it
        self._guess = self._certain

    def begin(self, sample: Sample) -> None:
        """Take in the sample of all elements."""
        if self.k > sample.count:
            raise ValueError(f"the {self.k}-th largest of {sample.count} magnitudes was asked for")
        if self.k == sample.count:
            self.done = True
        elif sample.gathering.stride == 1:
            self._finish(select(sample.gathering.members, [self.k - 1])[0])
        else:
            self._guess_from(sample.gathering.members, self.k, sample.count)

    def sieve(self, buffer: Tensor, workspace: Workspace, order: RankOrder) -> Sieve:
        """For the next pass."""
        return Sieve(self._guess, self.key, buffer, workspace, order)

    def narrow(self, sieve: Sieve, order: RankOrder) -> PackedFlags | None:
        """Take in what a pass found in the interval that was guessed. Gives what the trim keeps, where that is known
        now."""
        rank = self.k - sieve.before
        if rank < 1:
            self._search_all(Interval(self._certain.low, self._guess.low - 1))
        elif rank > sieve.inside:
            self._search_all(Interval(self._guess.high + 1, self._certain.high))
        elif sieve.gathering.stride == 1:
            composite = select(sieve.gathering.members, [rank - 1])[0]
            self._finish(composite)
            return order.up_to(composite) if 0 < INFINITY - (composite >> 32) < INFINITY else None
        else:
            self._certain = self._guess
            self._guess_from(sieve.gathering.members, rank, sieve.inside)
        return None

    def _search_all(self, interval: Interval) -> None:
        if interval.low >= ZERO:
            self._finish(ZERO)
            return
        self._certain = interval
        self._guess = Interval(interval.low, min(interval.high, ZERO - 1))
        self.expected = SAMPLE

    def _guess_from(self, members: Tensor, rank: int, count: int) -> None:
        """Guess the interval around the place that `rank`, of `count`, has in a sample."""
        size = members.numel()
        place = (rank - 0.5) / count * size
        margin = SPREAD * sqrt(place * (1.0 - place / size)) + 16.0
        first, last = int(place - margin), int(place + margin)
        low, high = select(members, [max(first, 0), min(last, size - 1)])
        self._guess = Interval(
            min(low, ZERO - 1) if first > 0 else self._certain.low,
            min(high if last < size - 1 else self._certain.high, ZERO - 1),
        )
        self.expected = max(int(4 * margin / size * count), SAMPLE)

    def _finish(self, composite: int) -> None:
        self.done = True
        bits = INFINITY - (composite >> 32)
        if bits == INFINITY:
            self.trim = Trim(float(np.finfo(np.float32).max), HASH_RANGE - 1, self.key)
        elif bits == 0:
            self.trim = Trim(0.0, HASH_RANGE - 1, self.key)
        else:
            self.trim = Trim(float(np.int32(bits).view(np.float32)), composite & WORD, self.key)


def select(members: Tensor, ranks: list[int]) -> list[int]:
    """The members of the given ranks, counted from 0, in rising order. Reorders the members."""
    if members.device.type == "cpu":
        words, begin, found = members.numpy(), 0, []
        for rank in ranks:  # one at a time: numpy is ten times slower at several together
            words[begin:].partition(rank - begin)
            found.append(int(words[rank]))
            begin = rank
        return found
    ordered = torch.sort(members).values
    return [int(ordered[rank]) for rank in ranks]
