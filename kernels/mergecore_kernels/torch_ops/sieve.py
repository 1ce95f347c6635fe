"""Gather elements of a delta by rank: a sample of all of them, or those in an interval of ranks.

The rank order of elements is that of a composite of 63 bits: Inf's bits less the magnitude's, above the 32 bits of the
counter hash. The largest magnitude comes first; equal magnitudes are in the order of their hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Key
from mergecore_kernels.torch_ops.counter_hash import WORD, hash_offsets, hash_offsets_torch
from mergecore_kernels.torch_ops.rank_order import RankOrder
from mergecore_kernels.torch_ops.tile import CHUNK
from mergecore_kernels.torch_ops.workspace import Workspace

INFINITY = 0x7F800000
"""Bits of float32 Inf. NaN counts as Inf: both are larger than every finite magnitude."""
ZERO = INFINITY << 32
"""The composite that stands for all elements of magnitude zero, the last in the order; they need none of their own."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Composites from `low` to `high`, both included."""

    low: int
    high: int


class Gathering:
    """Composites in a buffer of fixed size. When it is full every second one is let go: the rest is a sample."""

    def __init__(self, buffer: Tensor, at_least: int = 0) -> None:
        """`buffer`: int64 [capacity]. Of `at_least` members or more."""
        self.stride = 1
        """About one out of `stride` was kept; 1: all of them."""
        while at_least > self.stride * buffer.numel():
            self.stride *= 2  # what would be let go in the end isn't gathered
        self._held = 0
        self._buffer = buffer

    @property
    def members(self) -> Tensor:
        """[held] int64, in no order that means anything."""
        return self._buffer[: self._held]

    def gather(self, members: Tensor) -> None:
        """Hold these too. Those that fall to a larger stride have been left out already."""
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


class Sample:
    """One pass that looks at every `stride`-th element of a delta, all of them if they fit the buffer."""

    def __init__(self, key: Key, buffer: Tensor, workspace: Workspace, at_least: int = 0) -> None:
        """Of `at_least` elements or more."""
        self.gathering = Gathering(buffer, at_least)
        self.count = 0
        """Elements of the delta."""
        self._key = key
        self._workspace = workspace

    def add(self, x: Tensor, base: Tensor, start: int, compute: torch.dtype) -> None:
        """[n] the elements from `start` on, within one block of hashes as long as the stride is 1."""
        stride = self.gathering.stride
        # The first one differs from tile to tile, or a matrix would be sampled in a few of its columns.
        first = start // CHUNK * 40_503 % stride
        delta = x[first::stride].to(compute) - base[first::stride].to(compute)
        bits = delta.abs_().to(torch.float32).view(torch.int32)
        offsets = torch.arange(bits.numel(), dtype=torch.int32, device=x.device).mul_(stride).add_(first)
        self.count += x.numel()
        self.gathering.gather(composites(bits, self._key, start, offsets, self._workspace))


class Sieve:
    """One pass that counts and gathers what lies in an interval."""

    def __init__(
        self, interval: Interval, key: Key, buffer: Tensor, workspace: Workspace, order: RankOrder | None = None
    ) -> None:
        """`order`: where to note what comes before the interval and what is in it."""
        self.interval = interval
        self.gathering = Gathering(buffer)
        self.before = 0
        """Elements whose composite is below the interval."""
        self.inside = 0
        self._order = order if workspace.use_numpy else None
        self._key = key
        self._skip = 0  # members to pass over until the next one is gathered
        self._workspace = workspace

    def add(self, bits: Tensor, start: int) -> None:
        """[n] int32 bits of the float32 magnitudes from `start` on, within one block of hashes. May change them."""
        if self._workspace.use_numpy:
            members = torch.from_numpy(self._members_numpy(bits, start))
        else:
            offsets = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device)
            members = composites(bits, self._key, start, offsets, self._workspace)
            self.before += int(torch.count_nonzero(members < self.interval.low))
            members = members[(members >= self.interval.low) & (members <= self.interval.high)]
        self.inside += members.numel()
        stride = self.gathering.stride
        self.gathering.gather(members[self._skip :: stride])
        self._skip = (self._skip - members.numel()) % stride

    def _members_numpy(self, bits: Tensor, start: int) -> NDArray[np.int64]:
        """Hashes only the elements whose magnitude lies in the interval."""
        low, high = self.interval.low, self.interval.high
        smallest, largest = INFINITY - (high >> 32), INFINITY - (low >> 32)
        if largest == INFINITY:
            bits.clamp_(max=INFINITY)
        words = bits.numpy()
        above = self._workspace.take("above", len(words), torch.bool).numpy()
        candidate = self._workspace.take("candidate", len(words), torch.bool).numpy()
        np.greater(words, largest, out=above)
        np.greater_equal(words, smallest, out=candidate)
        np.not_equal(candidate, above, out=candidate)
        (offsets,) = candidate.nonzero()
        values: NDArray[Any]
        if smallest == largest:
            # Hashes alone decide: common, as a fifth of a bfloat16 fine-tune's deltas may be equal.
            values, first, last = hash_offsets(self._key, start, offsets), low & WORD, high & WORD
        else:
            values, first, last = _composites_numpy(words[offsets], self._key, start, offsets), low, high
        below = values < values.dtype.type(first)
        self.before += int(np.count_nonzero(above)) + int(np.count_nonzero(below))
        (inside,) = np.not_equal(below, values <= values.dtype.type(last)).nonzero()
        members = values[inside].astype(np.int64)
        if smallest == largest:
            members |= low - first
        if self._order is not None:
            above[offsets] = below
            self._order.add(start, above, offsets[inside], members)
        return members


def composites(bits: Tensor, key: Key, start: int, offsets: Tensor, workspace: Workspace) -> Tensor:
    """[n] int64 composites of the elements start + offsets, from the int32 bits of their magnitudes."""
    if workspace.use_numpy:
        words = _composites_numpy(bits.numpy(), key, start, offsets.numpy())
        return torch.from_numpy(np.minimum(words, ZERO, out=words))
    hashes = hash_offsets_torch(key, start, offsets).to(torch.int64) & WORD
    return (((INFINITY - bits.to(torch.int64).clamp_(max=INFINITY)) << 32) | hashes).clamp_(max=ZERO)


def _composites_numpy(
    words: NDArray[np.int32], key: Key, start: int, offsets: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """The same, but zeros have their hashes."""
    result = np.minimum(words, INFINITY).astype(np.int64)
    np.subtract(INFINITY, result, out=result)
    np.left_shift(result, 32, out=result)
    return np.bitwise_or(result, hash_offsets(key, start, offsets), out=result)
