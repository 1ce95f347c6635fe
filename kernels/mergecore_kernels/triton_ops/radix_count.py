"""The pass of the radix search that counts the elements of an interval, bucket by bucket.

A program has a histogram in shared memory and adds it to the one in global memory. Additions of integers are exact, so
their order doesn't matter. The base is read once, and of the deltas those that are searched.

Lanes without an element hold zeros, and are counted as such. That does no harm: zeros come last, so no other element's
place depends on their number, and once the k-th is known to be one of them nothing more is counted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.triton_ops import radix
from mergecore_kernels.triton_ops.claims import Claim, bytes_once
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, TAIL, load, locate, whole_part
from mergecore_kernels.triton_ops.radix_elements import distance_in, hash_of, is_awaited, rank_distance

_STATE, _NEXT = tl.constexpr(radix.STATE), tl.constexpr(radix.NEXT)
_RANK, _HASH = tl.constexpr(radix.RANK), tl.constexpr(radix.HASH)


@triton.jit
def _count(
    row_ptr,
    words_ptr,
    state_ptr,
    counts_ptr,  # of the job
    number,
    shift,
    first,
    at,
    left,  # of the program, and of these elements in the tile
    BY_HASH: tl.constexpr,
    SPLIT: tl.constexpr,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BUCKETS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED, COMPUTE)
    for m in tl.static_range(len(INPUTS)):
        state = state_ptr + m * _STATE
        if tl.load(state + _NEXT) == number:
            x = load(row_ptr + INPUT_SLOT + m, at, lane, left, INPUTS[m], ALIGNED, COMPUTE)
            distance, inside = rank_distance(x - base, state + _RANK)
            if BY_HASH:
                hashes = hash_of(row_ptr, words_ptr + 2 * m, first, at, lane)
                distance, near = distance_in(hashes, state + _HASH)
                inside &= near
            bucket = (distance >> shift).to(tl.int32)
            if SPLIT:
                bucket = 2 * bucket + ((distance & ((1 << shift) - 1)) != 0).to(tl.int32)
            if BY_HASH:
                # A mask of its own would be computed in another layout, by a second hash.
                bucket = tl.where(inside, bucket, -1)
                inside = bucket >= 0
            counts = counts_ptr + m * BUCKETS
            if LANES == TAIL:
                one = tl.full((LANES,), 1, tl.int64)
                tl.atomic_add(counts + bucket, one, mask=inside, sem="relaxed")
            else:
                histogram = tl.histogram(bucket, BUCKETS, mask=inside)
                place = tl.arange(0, BUCKETS)
                tl.atomic_add(counts + place, histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")


@triton.jit(do_not_specialize=["number", "shift"])
def count_kernel(
    rows_ptr,
    blocks_ptr,  # int64, the launch table
    searches_ptr,  # int64 [jobs]: the job's first search
    words_ptr,  # int64 [jobs, M, 2]: hash key words
    state_ptr,  # int64 [searches, STATE]
    counts_ptr,  # int64 [searches, BUCKETS]
    number,  # this pass
    shift,  # a bucket has 2^shift ranks or hashes
    BY_HASH: tl.constexpr,
    SPLIT: tl.constexpr,  # it is two buckets, its first rank and the others
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BUCKETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to the searches' counts the elements of their intervals, bucket by bucket."""
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    search = tl.load(searches_ptr + job)
    words_ptr += job * 2 * len(INPUTS)
    state_ptr += search * _STATE
    counts_ptr += search * BUCKETS
    if is_awaited(state_ptr, number, len(INPUTS)):
        if ALIGNED:
            whole = whole_part(left)
        else:
            whole = left
        _count(
            row_ptr, words_ptr, state_ptr, counts_ptr, number, shift, at, at, whole,
            BY_HASH, SPLIT, INPUTS, BASE, COMPUTE, ALIGNED, BUCKETS, BLOCK,
        )  # fmt: skip
        if whole < left:
            _count(
                row_ptr, words_ptr, state_ptr, counts_ptr, number, shift, at, at + whole, left - whole,
                BY_HASH, SPLIT, INPUTS, BASE, COMPUTE, False, BUCKETS, TAIL,
            )  # fmt: skip


CLAIMS = {"count_kernel": Claim(registers={2: 72}, bytes_per_element=bytes_once)}
