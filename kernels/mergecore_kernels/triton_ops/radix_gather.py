"""The pass of the radix search that gathers what is left of an interval.

The members come in any order, as which program adds first is left to chance; only their set counts. The base is read
once, and of the deltas those that are searched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.triton_ops import radix
from mergecore_kernels.triton_ops.claims import Claim, bytes_once
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, TAIL, load, locate, whole_part
from mergecore_kernels.triton_ops.radix_elements import distance_in, hash_of, is_awaited, rank_of

_STATE, _NEXT = tl.constexpr(radix.STATE), tl.constexpr(radix.NEXT)
_RANK, _HASH = tl.constexpr(radix.RANK), tl.constexpr(radix.HASH)
_HELD = tl.constexpr(radix.HELD)


@triton.jit
def _gather(
    row_ptr,
    words_ptr,
    state_ptr,
    members_ptr,  # of the job
    number,
    first,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROOM: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED, COMPUTE)
    for m in tl.static_range(len(INPUTS)):
        state = state_ptr + m * _STATE
        if tl.load(state + _NEXT) == number:
            x = load(row_ptr + INPUT_SLOT + m, at, lane, left, INPUTS[m], ALIGNED, COMPUTE)
            rank = rank_of(x - base)
            _, inside = distance_in(rank, state + _RANK)
            inside &= lane < left
            # Few programs have any: the others are spared the hash and the atomic additions.
            if tl.max(inside.to(tl.int32), 0) > 0:
                hashes = hash_of(row_ptr, words_ptr + 2 * m, first, at, lane)
                _, near = distance_in(hashes, state + _HASH)
                inside &= near
                # The low half: 32 bits are enough, and take fewer registers.
                held = (state + _HELD).to(tl.pointer_type(tl.int32), bitcast=True)
                place = tl.atomic_add(held + tl.zeros_like(lane), 1, mask=inside, sem="relaxed")
                member = (rank.to(tl.int64) << 32) | hashes.to(tl.int64)
                tl.store(members_ptr + m * ROOM + place, member, mask=inside)


@triton.jit(do_not_specialize=["number"])
def gather_kernel(
    rows_ptr,
    blocks_ptr,  # int64, the launch table
    searches_ptr,  # int64 [jobs]: the job's first search
    words_ptr,  # int64 [jobs, M, 2]: hash key words
    state_ptr,  # int64 [searches, STATE]
    members_ptr,  # int64 [searches, ROOM]
    number,  # this pass
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Hold the elements of the searches' intervals, as rank · 2³² + hash, in an order that means nothing."""
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    search = tl.load(searches_ptr + job)
    words_ptr += job * 2 * len(INPUTS)
    state_ptr += search * _STATE
    members_ptr += search * ROOM
    if is_awaited(state_ptr, number, len(INPUTS)):
        if ALIGNED:
            whole = whole_part(left)
        else:
            whole = left
        _gather(
            row_ptr, words_ptr, state_ptr, members_ptr, number, at, at, whole,
            INPUTS, BASE, COMPUTE, ALIGNED, ROOM, BLOCK,
        )  # fmt: skip
        if whole < left:
            _gather(
                row_ptr, words_ptr, state_ptr, members_ptr, number, at, at + whole, left - whole,
                INPUTS, BASE, COMPUTE, False, ROOM, TAIL,
            )  # fmt: skip


CLAIMS = {"gather_kernel": Claim(registers={2: 72}, bytes_per_element=bytes_once)}
