"""How values get in and out of a kernel: exact casts on load, one rounding at the store, 128 bits at a time.

A mask `lane < left` hinders wide loads unless `left` is known to be a multiple of 16. So a kernel has its arithmetic in
a body, written for any number of lanes, and runs it on all but the last elements of a tensor, then on these few:

    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, at, whole, INPUTS, BASE, OUT, True, BLOCK)
        if whole < left:
            _body(row_ptr, at + whole, left - whole, INPUTS, BASE, OUT, False, TAIL)
    else:
        _body(row_ptr, at, left, INPUTS, BASE, OUT, False, BLOCK)

In a body `lane = tl.arange(0, LANES)`; the index of an element in the flattened tensor is `start + at + lane`, with
`start = tl.load(row_ptr + START)`. `row_ptr + OUT_SLOT`, `+ BASE_SLOT` and `+ INPUT_SLOT + m` are the slots that `load`
and `store` take. The tail costs no registers, as a second body of BLOCK lanes would.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.triton_ops.float8 import E4M3FN, E5M2, loaded_as, widen_e4m3fn, widen_e5m2

START = tl.constexpr(1)
OUT_SLOT = tl.constexpr(2)
BASE_SLOT = tl.constexpr(3)
INPUT_SLOT = tl.constexpr(4)
"""Columns of the launch table's rows; column 0 is n."""
TAIL = tl.constexpr(16)
"""Lanes for the last elements, of which there are fewer."""


@triton.jit
def locate(
    rows_ptr,  # int64 [jobs, 4 + M]
    blocks_ptr,  # int64 [programs, 2]
    M: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARERS: tl.constexpr = 1,  # programs that share a block
):
    """This program's row_ptr, job, index of its first element in the tile (int64), number of elements (int32)."""
    entry_ptr = blocks_ptr + 2 * (tl.program_id(0) // SHARERS).to(tl.int64)
    job = tl.load(entry_ptr)
    at = tl.multiple_of(tl.load(entry_ptr + 1), BLOCK)
    row_ptr = rows_ptr + job * (INPUT_SLOT + M)
    left = tl.minimum(tl.load(row_ptr) - at, BLOCK).to(tl.int32)
    return row_ptr, job, at, left


@triton.jit
def whole_part(left):
    """The elements that are handled 128 bits at a time."""
    return tl.multiple_of(left // TAIL * TAIL, TAIL)


@triton.jit
def address(
    slot_ptr,  # int64: the address of a tensor, in the launch table
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The tensor's pointer, known to be aligned where it is; to bytes if it is float8."""
    pointer = tl.load(slot_ptr).to(tl.pointer_type(loaded_as(DTYPE)))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load(
    slot_ptr,
    at,  # int64
    lane,  # int32 [LANES]
    left,  # elements from `at` on that exist; beyond them 0
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    COMPUTE: tl.constexpr = tl.float32,
):
    """[LANES] in the compute dtype, an exact cast."""
    pointer = address(slot_ptr, DTYPE, ALIGNED) + at
    values = tl.load(pointer + lane, mask=lane < left, other=0.0)
    if DTYPE == E4M3FN:
        values = widen_e4m3fn(values)
    elif DTYPE == E5M2:
        values = widen_e5m2(values)
    return values.to(COMPUTE)


@triton.jit
def store(
    values,  # float32 [LANES]
    slot_ptr,
    at,
    lane,
    left,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Round to the output dtype, once, ties to even."""
    pointer = address(slot_ptr, DTYPE, ALIGNED) + at
    tl.store(pointer + lane, values.to(DTYPE), mask=lane < left)
