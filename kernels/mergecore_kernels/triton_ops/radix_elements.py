"""What the passes of the radix search have in common: which searches wait, and the rank and hash of an element.

`radix` has the terms and the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.triton_ops import radix
from mergecore_kernels.triton_ops.counter_hash import hash_offsets, hash_seed
from mergecore_kernels.triton_ops.loading import START

_INFINITY, _STATE, _NEXT = tl.constexpr(radix.INFINITY), tl.constexpr(radix.STATE), tl.constexpr(radix.NEXT)


@triton.jit
def is_awaited(
    state_ptr,  # int64 [M, STATE]
    number,  # of a pass
    M: tl.constexpr,
):
    """Whether a search of the job waits for this pass."""
    awaited = tl.load(state_ptr + _NEXT) == number
    for m in tl.static_range(1, M):
        awaited |= tl.load(state_ptr + m * _STATE + _NEXT) == number
    return awaited


@triton.jit
def rank_of(
    delta,  # [LANES] float32 or float64
):
    """int32 [LANES]: Inf's bits less those of |δ| as float32, at least 0."""
    bits = delta.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.maximum(-bits + _INFINITY, 0)


@triton.jit
def rank_distance(
    delta,  # [LANES] float32 or float64
    first_ptr,  # int64: the first rank of the interval; then how many come after it
):
    """As `distance_in` of `rank_of`, with one subtraction less."""
    first = tl.load(first_ptr).to(tl.int32)
    bits = delta.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    distance = tl.maximum(-bits + (-first + _INFINITY), -first).to(tl.uint32)
    return distance, distance <= tl.load(first_ptr + 1).to(tl.uint32)


@triton.jit
def distance_in(
    value,  # int32 or uint32 [LANES]: ranks or hashes
    first_ptr,  # int64: the first one of the interval; then how many come after it
):
    """uint32 [LANES] how far a value is from the interval's first one, and whether it is inside."""
    distance = value.to(tl.uint32) - tl.load(first_ptr).to(tl.uint32)
    return distance, distance <= tl.load(first_ptr + 1).to(tl.uint32)


@triton.jit
def hash_of(
    row_ptr,
    words_ptr,  # int64: the two words of a key
    first,  # int64: the program's first element in the tile
    at,  # int64: that of lane 0
    lane,
):
    """uint32 [LANES]"""
    seed = hash_seed(tl.load(row_ptr + START) + first, tl.load(words_ptr))
    return hash_offsets((at - first).to(tl.uint32) + lane.to(tl.uint32), seed, tl.load(words_ptr + 1))
