"""How the k-th magnitude is narrowed down on the device: the passes, and the state between them.

The elements of a delta are in the order of two numbers, both rising: their *rank*, Inf's bits less those of the float32
magnitude (31 bits), and their counter hash (32 bits). What is known of the k-th element is an interval of ranks and,
once only one rank is left, an interval of hashes. A pass counts the elements of the interval in buckets of equal width;
the bucket that holds the k-th is the next interval. As soon as it holds few elements, they are gathered and the k-th
is selected from them.

The hash is a bijection of the index's low 32 bits. So an interval of w hashes holds at most w elements per 2³² of the
tensor, and after the last pass that counts there are always few.

Everything is an integer and every sum is exact, so neither the order of atomic additions nor the choice of buckets can
change the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

INFINITY = 0x7F800000
"""Bits of float32 Inf. NaN counts as Inf: both have the first rank, 0. Zeros have the last one, INFINITY."""

STATE = 8
"""Fields of a search's state, all int64."""
NEXT = 0
"""The pass that it waits for."""
REMAINING = 1
"""Which element of the interval is the one looked for, counted from 1."""
RANK, RANKS = 2, 3
"""The interval's first rank, and its last rank less the first."""
HASH, HASHES = 4, 5
"""The same of the hashes."""
PASSES = 6
"""The passes that looked at the delta: bit i is set for pass i."""
HELD = 7
"""Elements gathered."""


@dataclass(frozen=True, slots=True)
class Count:
    """A pass that counts in buckets of 2^shift ranks, or hashes."""

    shift: int
    by_hash: bool = False
    split: bool = False
    """Each bucket is two: its first rank, and all others. The low bits of deltas of 16-bit numbers are mostly zero, so
    that the k-th has the first rank and the other passes over ranks needn't look at the inputs."""


@dataclass(frozen=True, slots=True)
class Radix:
    """The passes for one kind of device. The last one, not listed, gathers."""

    buckets: int
    counts: tuple[Count, ...]
    few: int = 2048
    """Elements that are gathered rather than counted once more."""

    @property
    def by_hash(self) -> int:
        """The number of the first pass that counts by hash."""
        return next(number for number, count in enumerate(self.counts) if count.by_hash)

    @property
    def gather(self) -> int:
        """The number of the pass that gathers. A search that is over waits for the one after it."""
        return len(self.counts)

    @property
    def over(self) -> int:
        return self.gather + 1

    def room(self, n: int) -> int:
        """For how many gathered elements of n there must be room, a power of two."""
        hashes = 1 << self.counts[-1].shift
        return max(self.few, int(triton.next_power_of_2(hashes * -(-n // (1 << 32)))))


NVIDIA = Radix(2048, (Count(20), Count(10, split=True), Count(0), Count(21, by_hash=True), Count(10, by_hash=True)))
"""11 + 10 + 10 bits of the rank: a histogram in shared memory takes the same time for any number of buckets."""
AMD = Radix(
    256,
    (
        *(Count(23), Count(16, split=True), Count(8), Count(0)),
        *(Count(24, by_hash=True), Count(16, by_hash=True), Count(8, by_hash=True)),
    ),
)
"""8 + 7 + 8 + 8 bits: the time of a histogram grows with the number of buckets."""


def radix_of(backend: str) -> Radix:
    """For Triton's name of a backend, "cuda" or "hip"."""
    return AMD if backend == "hip" else NVIDIA
