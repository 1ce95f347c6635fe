"""Drop elements at random, those of small magnitude within their row more often: DELLA's mask, written by two kernels.

The first one sorts the magnitudes of each row, in registers, and writes them. The second one looks each magnitude up
among them, twice by halving the interval, for how many are smaller and how many aren't larger: its mean rank, from
which threshold and choice follow. It writes a byte per element, 1 where it is kept, which other kernels load (see
masks.py). Rows longer than LONGEST are sorted by `torch.sort`, on the same device.

Of each delta both read model and base; between them are 4 bytes per element, written once and read by way of the
cache. With the mask that is 17 bytes per element of bfloat16, and time goes into sorting and looking up: some 600
instructions and 26 loads from the cache per element of a row of 4096.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import Key, RankedDrop, whole_rows
from mergecore_kernels.torch_ops.ranked_drop import linear_thresholds, magnitude_bits
from mergecore_kernels.torch_ops.sieve import INFINITY
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.counter_hash import hash_index, key_words
from mergecore_kernels.triton_ops.launch_table import (
    ALIGNMENT,
    BLOCK,
    Layout,
    grouped,
    launch_options,
    launch_table,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import (
    BASE_SLOT,
    INPUT_SLOT,
    OUT_SLOT,
    START,
    TAIL,
    address,
    load,
    locate,
    whole_part,
)

LONGEST = 8192
"""Columns of a row that a program sorts: 8 for each of 1024 threads, the most that a program can have."""
_SHORTEST = 128
_AT_ONCE = 1 << 22
"""Elements that are sorted before it is decided which of them are kept. It bounds the memory for what is sorted:
4 bytes per element, or some 50 where torch sorts."""
_INFINITY = tl.constexpr(INFINITY)
_BEYOND = tl.constexpr(0x7FFFFFFF)
"""Larger than every magnitude."""
_ROUNDER = tl.constexpr(1.5 * 2.0**52)
"""Added to a float64 below 2⁵¹ and taken away again, it leaves the nearest integer; ties go to the even one."""


@triton.jit
def _sort_kernel(
    rows_ptr,  # int64 [jobs, 5]: see launch_table.py
    blocks_ptr,  # int64 [rows, 2]
    columns,  # elements of a row
    INPUTS: tl.constexpr,  # [1]
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two, `columns` or more
):
    entry_ptr = blocks_ptr + 2 * tl.program_id(0).to(tl.int64)
    row_ptr = rows_ptr + tl.load(entry_ptr) * (INPUT_SLOT + 1)
    at = tl.load(entry_ptr + 1)
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    lane = tl.arange(0, WIDTH)
    bits = _magnitude_bits(row_ptr, at, lane, columns, INPUTS, BASE, ALIGNED)
    ordered = tl.sort(tl.where(lane < columns, bits, _BEYOND))
    tl.store(address(row_ptr + OUT_SLOT, tl.int32, ALIGNED) + at + lane, ordered, mask=lane < columns)


@triton.jit
def _keep_kernel(
    rows_ptr,  # int64 [jobs, 6]: of two inputs, the model and the magnitudes in order
    blocks_ptr,  # int64 [programs, 2]
    words_ptr,  # int32 [jobs, HASH_BLOCKS, 2]: key words, from the block of the tile's first element on
    lines_ptr,  # float64 [jobs, 2]: threshold of rank 0, and its rise from one doubled rank to the next
    columns,  # elements of a row
    INPUTS: tl.constexpr,  # [1]
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    HASH_BLOCKS: tl.constexpr,
    LEVELS: tl.constexpr,  # 2 to this power is more than `columns`
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, 2, BLOCK)
    words_ptr += job * (HASH_BLOCKS * 2)
    lines_ptr += job * 2
    if ALIGNED:
        whole = whole_part(left)
        _keep(row_ptr, words_ptr, lines_ptr, columns, at, 0, whole, INPUTS, BASE, True, LEVELS, BLOCK)
        if whole < left:
            rest = left - whole
            _keep(row_ptr, words_ptr, lines_ptr, columns, at, whole, rest, INPUTS, BASE, False, LEVELS, TAIL)
    else:
        _keep(row_ptr, words_ptr, lines_ptr, columns, at, 0, left, INPUTS, BASE, False, LEVELS, BLOCK)


@triton.jit
def _keep(
    row_ptr,
    words_ptr,
    lines_ptr,
    columns,
    at,  # int64: the program's first element, in the tile
    skip,  # int32: elements of the program that come before these
    left,  # int32: elements
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    LEVELS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    live = lane < left
    bits = _magnitude_bits(row_ptr, at + skip, lane, left, INPUTS, BASE, ALIGNED)
    # The rows' begins: of the program's first row, then of each element's.
    first = at // columns * columns
    row = (lane + (at - first + skip).to(tl.int32)) // columns * columns
    ordered_ptr = address(row_ptr + (INPUT_SLOT + 1), tl.int32, ALIGNED) + first + row
    smaller = tl.zeros_like(lane)
    reached = tl.zeros_like(lane)
    for level in tl.static_range(LEVELS):
        step = 1 << (LEVELS - 1 - level)
        smaller += tl.where(_entry(ordered_ptr, smaller + step, columns, live) < bits, step, 0)
        reached += tl.where(_entry(ordered_ptr, reached + step, columns, live) <= bits, step, 0)
    # Places of the first and the last of the equals, added.
    rank = smaller + reached - 1
    threshold = rank.to(tl.float64) * tl.load(lines_ptr + 1) + tl.load(lines_ptr)
    threshold = (threshold + _ROUNDER) - _ROUNDER
    start = tl.load(row_ptr + START)
    hashes = hash_index(start + at + skip + lane, start >> 32, words_ptr)
    kept = hashes.to(tl.float64) < threshold
    kept_ptr = address(row_ptr + OUT_SLOT, tl.uint8, ALIGNED) + at + skip
    tl.store(kept_ptr + lane, kept.to(tl.uint8), mask=live)


@triton.jit
def _magnitude_bits(
    row_ptr,
    at,  # int64
    lane,  # int32 [LANES]
    left,  # elements from `at` on that exist
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """int32 [LANES]: |δ|, with NaN as Inf."""
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    delta = load(row_ptr + INPUT_SLOT, at, lane, left, INPUTS[0], ALIGNED) - base
    return tl.minimum(delta.to(tl.int32, bitcast=True) & 0x7FFFFFFF, _INFINITY)


@triton.jit
def _entry(
    ordered_ptr,  # int32 pointers [LANES]: begin of each element's row
    place,  # int32 [LANES]: counted from 1
    columns,
    live,  # bool [LANES]
):
    """int32 [LANES]: the magnitude at this place of the row, in rising order; after its end, one above all others."""
    return tl.load(ordered_ptr + (place - 1), mask=live & (place <= columns), other=_BEYOND)


_Job: TypeAlias = tuple[RankedDrop, Tile]
_Piece: TypeAlias = tuple[RankedDrop, Tile, Tensor]
"""With its part of what is written."""


def kept_batch(jobs: Sequence[_Job], workspace: Workspace) -> list[Tensor]:
    """uint8 [n + BLOCK] for each job: 1 where the mask keeps the element, else 0; BLOCK bytes of any value.

    The jobs' tiles are whole rows of one input and its base. The host doesn't wait.
    """
    kept = [torch.empty(len(tile) + BLOCK, dtype=torch.uint8, device=workspace.device) for _, tile in jobs]
    pieces = [piece for job, out in zip(jobs, kept, strict=True) for piece in _pieces(*job, out)]
    for (layout, columns), group in grouped((_kind(*piece), piece) for piece in pieces).items():
        for some in _rounds(group):
            masks, tiles, outs = zip(*some, strict=True)
            _launch(layout, columns, masks, tiles, outs, workspace.device)
    return kept


def _pieces(mask: RankedDrop, tile: Tile, out: Tensor) -> Iterator[_Piece]:
    """The job in pieces of whole rows, which begin as many elements after its begin as keep addresses aligned."""
    size = whole_rows(_AT_ONCE, mask.columns * ALIGNMENT)
    for at in range(0, len(tile), size):
        end = min(at + size, len(tile))
        yield mask, tile.part(at, end), out[at:end]


def _rounds(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces that are sorted together."""
    some: list[_Piece] = []
    held = 0
    for piece in pieces:
        if some and held + len(piece[1]) > _AT_ONCE:
            yield some
            some, held = [], 0
        some.append(piece)
        held += len(piece[1])
    if some:
        yield some


def _kind(mask: RankedDrop, tile: Tile, _: Tensor) -> tuple[Layout, int]:
    """What the kernels are compiled for, and the columns of a row."""
    assert tile.compute == torch.float32, "float64 is left to the torch twin"
    assert len(tile) % mask.columns == tile.start % mask.columns == 0, "rows must be whole"
    return Layout.of(tile), mask.columns


def _launch(
    layout: Layout,
    columns: int,
    masks: Sequence[RankedDrop],
    tiles: Sequence[Tile],
    outs: Sequence[Tensor],
    device: torch.device,
) -> None:
    ordered = _ordered(layout, columns, tiles, device)
    with_order = [
        Tile(tile.start, [*tile.inputs, values], tile.base, tile.compute)
        for tile, values in zip(tiles, ordered, strict=True)
    ]
    table = launch_table(with_order, outs, device)
    hash_blocks = max(((tile.start + len(tile) - 1) >> 32) - (tile.start >> 32) for tile in tiles) + 1
    words = [
        [key_words(mask.key, tile.start + (block << 32)) for block in range(hash_blocks)]
        for mask, tile in zip(masks, tiles, strict=True)
    ]
    _keep_kernel[(table.programs,)](
        table.rows,
        table.blocks,
        to_device(np.array(words, dtype=np.uint32).view(np.int32), device),
        to_device(np.array([linear_thresholds(mask) for mask in masks]), device),
        columns,
        **layout.constants(),
        HASH_BLOCKS=hash_blocks,
        LEVELS=columns.bit_length(),
        BLOCK=BLOCK,
        **launch_options(),
    )


def _ordered(layout: Layout, columns: int, tiles: Sequence[Tile], device: torch.device) -> list[Tensor]:
    """int32 [n] for each tile: the magnitudes' bits, rising within each row."""
    if columns > LONGEST:
        return [_sorted_by_torch(tile, columns) for tile in tiles]
    ordered = [torch.empty(len(tile), dtype=torch.int32, device=device) for tile in tiles]
    table = launch_table(tiles, ordered, device, columns)
    width = max(triton.next_power_of_2(columns), _SHORTEST)
    constants: dict[str, Any] = layout.of_rows(columns).constants()
    _sort_kernel[(table.programs,)](
        table.rows,
        table.blocks,
        columns,
        **constants | {"ALIGNED": constants["ALIGNED"] and columns % 16 == 0},
        WIDTH=width,
        **launch_options(width),
    )
    return ordered


def _sorted_by_torch(tile: Tile, columns: int) -> Tensor:
    assert tile.base is not None, "ranks of deltas need a base"
    delta = tile.inputs[0].to(torch.float32) - tile.base.to(torch.float32)
    return torch.sort(magnitude_bits(delta).view(-1, columns), dim=1).values.view(-1)


def bytes_moved(tile: Tile) -> int:
    """Of one delta: input and base by each kernel, the magnitudes in order and the mask."""
    return 2 * tensor_bytes(tile) + 9 * len(tile)


CLAIMS = {
    "_sort_kernel": Claim(
        registers={2: 64},
        bytes_per_element=lambda constants: bytes_once(constants) + 4,
    ),
    "_keep_kernel": Claim(
        registers={2: 144},
        bytes_per_element=bytes_once,  # the mask's bytes and the cached magnitudes are moved in narrower accesses
        divides=lambda constants: True,
    ),
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """The longest rows that are sorted here, by the largest programs. The number of models plays no part."""
    return {f"rows of {LONGEST}": partial(_example, dtype)} if m == 2 else {}


def _example(dtype: torch.dtype, workspace: Workspace) -> list[Tensor]:
    x = torch.zeros(LONGEST, dtype=dtype)
    mask = RankedDrop(0.5, 0.1, LONGEST, Key.of("example", 0, "", 0))
    return kept_batch([(mask, Tile(0, [x], x, torch.float32))], workspace)
