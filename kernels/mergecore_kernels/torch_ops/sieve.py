"""Count and gather the elements of a delta whose rank lies in an interval.

The rank order of elements is that of a composite of 63 bits: Inf's bits less the magnitude's, above the 32 bits of the
counter hash. The largest magnitude comes first; equal magnitudes are in the order of their hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops.counter_hash import WORD, hash_chunk, hash_offsets
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace

INFINITY = 0x7F800000
"""Bits of float32 Inf. NaN counts as Inf: both are larger than every finite magnitude."""
ZERO = INFINITY << 32
"""The composite that stands for all elements of magnitude zero, the last in the order; they need none of their own."""
_ODD = 40_503  # spreads the samples over the columns of a matrix; near 2¹⁶ / golden ratio


@dataclass(frozen=True, slots=True)
class Interval:
    """Composites from `low` to `high`, both included."""

    low: int
    high: int


EVERYTHING = Interval(0, ZERO)


class Sieve:
    """What one pass over a delta tells of an interval.

    Members are gathered in `members`; when it is full every second one is let go, so that what is left is a sample of
    them. An interval of everything is sampled before composites are formed: only every `stride`-th element is looked
    at.
    """

    def __init__(self, interval: Interval, key: Key, members: Tensor, workspace: Workspace) -> None:
        """`members`: int64 [capacity]."""
        self.interval = interval
        self.key = key
        self.before = 0
        """Elements whose composite is below the interval."""
        self.inside = 0
        self.stride = 1
        self._held = 0
        self._skip = 0  # members to pass over until the next one is gathered
        self._buffer = members
        self._workspace = workspace

    @property
    def members(self) -> Tensor:
        """[held] int64, in no order. All of the interval if `stride` is 1, otherwise about every stride-th one."""
        return self._buffer[: self._held]

    def add(self, bits: Tensor, start: int) -> None:
        """Look at the elements from `start` on, a multiple of CHUNK. `bits`, int32 [n], n ≤ CHUNK, are those of the
        float32 magnitudes."""
        if self.interval == EVERYTHING:
            self.inside += bits.numel()
            first = start // CHUNK * _ODD % self.stride
            self._gather(self._sample(bits, start, first))
            return
        members = self._members_numpy(bits, start) if self._workspace.use_numpy else self._members_torch(bits, start)
        self.inside += members.numel()
        taken = members[self._skip :: self.stride]
        self._skip = (self._skip - members.numel()) % self.stride
        self._gather(taken)

    def _sample(self, bits: Tensor, start: int, first: int) -> Tensor:
        if self._workspace.use_numpy:
            offsets = np.arange(first, bits.numel(), self.stride)
            return torch.from_numpy(np.minimum(self._composites(bits.numpy(), start, offsets), ZERO))
        return self._composites_torch(bits, start)[first :: self.stride]

    def _members_numpy(self, bits: Tensor, start: int) -> Tensor:
        """Hashes only the elements whose magnitude lies in the interval."""
        low, high = self.interval.low, self.interval.high
        smallest, largest = INFINITY - (high >> 32), INFINITY - (low >> 32)
        if largest == INFINITY:
            bits.clamp_(max=INFINITY)
        words = bits.numpy()
        above = self._workspace.take("above", len(words), torch.bool).numpy()
        candidate = self._workspace.take("candidate", len(words), torch.bool).numpy()
        np.greater(words, largest, out=above)
        self.before += int(np.count_nonzero(above))
        np.greater_equal(words, smallest, out=candidate)
        np.not_equal(candidate, above, out=candidate)
        composites = self._composites(words, start, np.flatnonzero(candidate))
        below = composites < low
        self.before += int(np.count_nonzero(below))
        np.not_equal(below, composites <= high, out=below)
        return torch.from_numpy(composites[np.flatnonzero(below)])

    def _composites(self, words: NDArray[np.int32], start: int, offsets: NDArray[np.intp]) -> NDArray[np.int64]:
        composites = words[offsets].astype(np.int64)
        np.minimum(composites, INFINITY, out=composites)
        np.subtract(INFINITY, composites, out=composites)
        np.left_shift(composites, 32, out=composites)
        np.bitwise_or(composites, hash_offsets(self.key, start, offsets), out=composites)
        return composites

    def _members_torch(self, bits: Tensor, start: int) -> Tensor:
        composites = self._composites_torch(bits, start)
        self.before += int(torch.count_nonzero(composites < self.interval.low))
        return composites[(composites >= self.interval.low) & (composites <= self.interval.high)]

    def _composites_torch(self, bits: Tensor, start: int) -> Tensor:
        hashes = hash_chunk(self.key, start, bits.numel(), self._workspace).to(torch.int64) & WORD
        return (((INFINITY - bits.to(torch.int64).clamp_(max=INFINITY)) << 32) | hashes).clamp_(max=ZERO)

    def _gather(self, members: Tensor) -> None:
        while self._held + members.numel() > self._buffer.numel():
            self._thin()
            members = members[::2]
        self._buffer[self._held : self._held + members.numel()] = members
        self._held += members.numel()

    def _thin(self) -> None:
        """Let go of every second member. In pieces: a copy onto itself would take a second buffer."""
        kept = 0
        for at in range(0, self._held, CHUNK):
            piece = self._buffer[at : min(at + CHUNK, self._held) : 2].clone()
            self._buffer[kept : kept + piece.numel()] = piece
            kept += piece.numel()
        self._held = kept
        self.stride *= 2
        self._skip = 0
