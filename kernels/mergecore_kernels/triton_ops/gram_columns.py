"""Gram matrices of the columns of a tensor, in one pass.

A program adds the products of the rows of one group, in some neighbouring columns, for all pairs at once; another
kernel adds the groups. Each pair has sums in registers, so more than MOST_PAIRS are shared among launches. A tile may
begin and end anywhere: it is taken in rectangles, one launch after another, and a group that an earlier rectangle began
is gone on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import GramColumns
from mergecore_kernels.torch_ops.gram_columns import GROUP_ROWS
from mergecore_kernels.torch_ops.rectangles import Rectangle, rectangles
from mergecore_kernels.torch_ops.tile import Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.gram import (
    Share,
    add_products,
    lanes_per_thread,
    part_of,
    pending_arrays,
    shares,
)
from mergecore_kernels.triton_ops.launch_table import BLOCK, Layout, launch_options, launch_table, to_device
from mergecore_kernels.triton_ops.loading import TAIL

WIDTH = 512
"""Columns of a program."""
MOST_PAIRS = 18
"""Of a launch."""


@triton.jit
def _gram_columns_kernel(
    row_ptr,  # int64 [4 + M]: see launch_table.py; the elements of the rectangle
    place_ptr,  # int64 [5]: the rectangle's first row, counted from the first group's; rows, first column, width; C
    sums_ptr,  # float32 [groups, pairs, C], which is added to
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PAIRS: tl.constexpr,  # (i, j) of each sum
    GROUP_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    first_row = tl.load(place_ptr)
    rows = tl.load(place_ptr + 1)
    width = tl.load(place_ptr + 3)
    if ALIGNED:
        width = tl.multiple_of(width, TAIL)
    columns = tl.load(place_ptr + 4)
    blocks = tl.cdiv(width, WIDTH)
    group = first_row // GROUP_ROWS + tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    begin = tl.maximum(group * GROUP_ROWS - first_row, 0)
    count = tl.minimum((group + 1) * GROUP_ROWS - first_row, rows) - begin
    at = begin * width + block * WIDTH
    left = tl.minimum(width - block * WIDTH, WIDTH).to(tl.int32)
    if ALIGNED:
        at = tl.multiple_of(at, TAIL)
        left = tl.multiple_of(left, TAIL)
    lane = tl.arange(0, WIDTH)
    sums_ptr += group * (len(PAIRS) * columns) + tl.load(place_ptr + 2) + block * WIDTH
    sums = ()
    for pair in tl.static_range(len(PAIRS)):
        sums = sums + (tl.load(sums_ptr + pair * columns + lane, mask=lane < left, other=0.0),)
    for row_at in range(at, at + count * width, width):
        sums = add_products(sums, row_ptr, row_at, lane, left, INPUTS, BASE, ALIGNED, PAIRS)
    for pair in tl.static_range(len(PAIRS)):
        tl.store(sums_ptr + pair * columns + lane, sums[pair], mask=lane < left)


@triton.jit
def _add_groups_kernel(
    sums_ptr,  # float32 [groups, n]
    totals_ptr,  # float64 [n], which is added to
    groups_ptr,  # int64 [2]: groups, n
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    groups = tl.load(groups_ptr)
    n = tl.load(groups_ptr + 1)
    live = i < n
    total = tl.load(totals_ptr + i, mask=live, other=0.0)
    for group in range(0, groups):
        total += tl.load(sums_ptr + group * n + i, mask=live, other=0.0).to(tl.float64)
    tl.store(totals_ptr + i, total, mask=live)


def gram_columns(tiles: Tiles, spec: GramColumns, workspace: Workspace) -> list[list[NDArray[np.float64]]]:
    """[M, M] symmetric, of arrays [C]. Products are rounded to float32, sums follow the torch twin."""
    dots: list[list[Any]] = awaited([gram_columns_batch([(spec, tiles)], workspace)])[0][0]
    return dots


def gram_columns_batch(jobs: Sequence[tuple[GramColumns, Tiles]], workspace: Workspace) -> Pending:
    """[M, M] of arrays for each job. Two launches per tile or a few more, no wait."""
    return pending_arrays([_sums(tiles, spec.columns, workspace) for spec, tiles in jobs])


def _sums(tiles: Tiles, columns: int, workspace: Workspace) -> tuple[int, Tensor]:
    """M, and float64 [pairs, C], the pairs of one share after another."""
    m = 0
    sums: dict[Share, ColumnSums] = {}  # in the order of the pairs
    for tile in tiles:
        if not sums:
            m = len(tile.inputs)
            parts = (part for share in shares(m) for part in _parts(share))
            sums = {part: ColumnSums(part, columns, workspace.device) for part in parts}
        for part, of_part in sums.items():
            of_part.add(part_of(tile, part))
    totals = [of_part.totals() for of_part in sums.values()]
    return m, torch.cat(totals) if totals else torch.empty(0, 0, dtype=torch.float64, device=workspace.device)


def _parts(share: Share) -> Iterator[Share]:
    """Its pairs in their order, MOST_PAIRS at a time, each with the inputs that it needs."""
    for at in range(0, len(share.pairs), MOST_PAIRS):
        pairs = share.pairs[at : at + MOST_PAIRS]
        used = sorted({place for pair in pairs for place in pair})
        inputs = tuple(share.inputs[place] for place in used)
        yield Share(inputs, tuple((used.index(i), used.index(j)) for i, j in pairs))


class ColumnSums:
    """The sums of one share over the tiles of a tensor, on the device."""

    def __init__(self, share: Share, columns: int, device: torch.device) -> None:
        self._pairs = share.pairs
        self._columns = columns
        self._totals = torch.zeros(len(share.pairs), columns, dtype=torch.float64, device=device)  # of whole groups
        self._group = torch.zeros(len(share.pairs), columns, device=device)  # of the group that has begun
        self._number = 0  # of this group

    def add(self, tile: Tile) -> None:
        """The tile's products. It begins in the group that has begun, or where a group does."""
        for part in rectangles(tile.start, len(tile), self._columns):
            self._add_rectangle(tile.part(part.at, part.end), part)

    def _add_rectangle(self, tile: Tile, part: Rectangle) -> None:
        last = (part.row + part.rows - 1) // GROUP_ROWS
        sums = self._group.new_zeros(last - self._number + 1, *self._group.shape)
        sums[0] = self._group
        first_row = part.row - self._number * GROUP_ROWS
        place = np.array([first_row, part.rows, part.column, part.width, self._columns])
        layout = Layout.of(tile).of_rows(part.width)
        layout = replace(layout, aligned=layout.aligned and part.width % TAIL.value == 0)
        groups = last - part.row // GROUP_ROWS + 1
        _gram_columns_kernel[(groups * triton.cdiv(part.width, WIDTH),)](
            launch_table([tile], None, sums.device).rows,
            to_device(place, sums.device),
            sums,
            **layout.constants(),
            PAIRS=self._pairs,
            GROUP_ROWS=GROUP_ROWS,
            WIDTH=WIDTH,
            **launch_options(WIDTH, per_thread=lanes_per_thread(len(tile.inputs))),
        )
        self._add_groups(sums[:-1])
        self._group, self._number = sums[-1], last

    def _add_groups(self, sums: Tensor) -> None:
        """float32 [groups, pairs, C], to the totals."""
        if not len(sums):
            return
        n = self._totals.numel()
        _add_groups_kernel[(triton.cdiv(n, BLOCK),)](
            sums, self._totals, to_device(np.array([len(sums), n]), sums.device), BLOCK=BLOCK, **launch_options()
        )

    def totals(self) -> Tensor:
        """float64 [pairs, C] the sums of all that was added."""
        return self._totals + self._group


CLAIMS = {
    "_gram_columns_kernel": Claim(
        registers={2: 84, 4: 192, 8: 200},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= 4 else 64,
        divides=lambda constants: True,  # integers
    ),
    "_add_groups_kernel": Claim(registers=dict.fromkeys((2, 4, 8), 64), bytes_per_element=None),
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Of deltas; two groups of rows."""
    rows, columns = GROUP_ROWS + 1, 2 * WIDTH
    n = rows * columns
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    return {"deltas": lambda workspace: gram_columns_batch([(GramColumns(columns), [tile])], workspace)}
