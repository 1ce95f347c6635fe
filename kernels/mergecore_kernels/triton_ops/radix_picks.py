"""The steps of the radix search between the passes: one program per search, on tables that are in the cache.

`radix` has the terms and the state. A program returns at once if its search doesn't wait for the step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.triton_ops import radix
from mergecore_kernels.triton_ops.claims import Claim

_INFINITY, _STATE = tl.constexpr(radix.INFINITY), tl.constexpr(radix.STATE)
_NEXT, _REMAINING = tl.constexpr(radix.NEXT), tl.constexpr(radix.REMAINING)
_RANK, _RANKS = tl.constexpr(radix.RANK), tl.constexpr(radix.RANKS)
_HASH, _HASHES = tl.constexpr(radix.HASH), tl.constexpr(radix.HASHES)
_PASSES, _HELD = tl.constexpr(radix.PASSES), tl.constexpr(radix.HELD)


@triton.jit(do_not_specialize=["number", "after_ranks", "gather", "few", "shift", "halves"])
def pick_kernel(
    state_ptr,  # int64 [searches, STATE]
    counts_ptr,  # int64 [searches, BUCKETS], zero afterwards
    number,  # this pass
    after_ranks,  # the pass that comes once a single rank is left
    gather,  # the pass that comes once few elements are left
    few,  # how many these are at most
    shift,  # of this pass
    halves,  # 1 if it splits its buckets, else 0
    BY_HASH: tl.constexpr,
    BUCKETS: tl.constexpr,
):
    """The bucket that holds the k-th element becomes the interval. One program per search."""
    search = tl.program_id(0).to(tl.int64)
    state = state_ptr + search * _STATE
    if tl.load(state + _NEXT) == number:
        bucket = tl.arange(0, BUCKETS)
        count = tl.load(counts_ptr + search * BUCKETS + bucket)
        tl.store(counts_ptr + search * BUCKETS + bucket, tl.zeros_like(count))
        remaining = tl.load(state + _REMAINING)
        found = tl.sum((tl.cumsum(count, 0) < remaining).to(tl.int32), 0)
        digit = found >> halves
        # The first half of a split bucket is one rank.
        single = (shift == 0) | ((halves == 1) & ((found & 1) == 0))
        inside = tl.sum(tl.where((bucket == found) | ((bucket >> halves == digit) & (single == 0)), count, 0), 0)
        before = tl.sum(tl.where(bucket >> halves < digit, count, 0), 0)
        interval = state + (_HASH if BY_HASH else _RANK)
        first = tl.load(interval) + (digit.to(tl.int64) << shift)
        following = number + 1
        if not BY_HASH:
            following = tl.where(single, after_ranks, following)
        following = tl.where(inside <= few, gather, following)
        if not BY_HASH:
            # No hash decides among NaN and Inf, nor among zeros; no rank comes after that of zeros.
            following = tl.where((single & (first == 0)) | (first == _INFINITY), gather + 1, following)
        tl.store(interval, first)
        tl.store(interval + 1, tl.where(single, 0, (1 << shift) - 1).to(tl.int64))
        tl.store(state + _REMAINING, remaining - before)
        tl.store(state + _PASSES, tl.load(state + _PASSES) | (1 << number))
        tl.store(state + _NEXT, following.to(tl.int64))


@triton.jit(do_not_specialize=["gather"])
def select_kernel(
    state_ptr,  # int64 [searches, STATE]
    members_ptr,  # int64 [searches, ROOM], rank · 2³² + hash of the elements gathered, in any order
    gather,  # the pass that gathered them
    ROOM: tl.constexpr,
):
    """The k-th of the gathered elements becomes the interval. One program per search."""
    search = tl.program_id(0).to(tl.int64)
    state = state_ptr + search * _STATE
    if tl.load(state + _NEXT) == gather:
        place = tl.arange(0, ROOM)
        held = place < tl.load(state + _HELD)
        member = tl.load(members_ptr + search * ROOM + place, mask=held, other=(1 << 63) - 1)
        remaining = tl.load(state + _REMAINING)
        low = tl.min(member, 0)
        high = tl.max(tl.where(held, member, 0), 0)
        while low < high:
            middle = low + ((high - low) >> 1)
            enough = tl.sum((member <= middle).to(tl.int32), 0) >= remaining
            low = tl.where(enough, low, middle + 1)
            high = tl.where(enough, middle, high)
        tl.store(state + _RANK, low >> 32)
        tl.store(state + _RANKS, 0)
        tl.store(state + _HASH, low & 0xFFFFFFFF)
        tl.store(state + _HASHES, 0)
        tl.store(state + _PASSES, tl.load(state + _PASSES) | (1 << gather))
        tl.store(state + _NEXT, (gather + 1).to(tl.int64))


CLAIMS = {
    "pick_kernel": Claim(registers={2: 112}, bytes_per_element=None),
    "select_kernel": Claim(registers={2: 88}, bytes_per_element=None),
}
