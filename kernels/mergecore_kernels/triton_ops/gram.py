"""All dot products of the inputs, or of their deltas from the base, in one pass.

A program adds the products of 512 lanes of a chunk, row after row, for all pairs at once; `reduction_tree` does the
rest. With more than GROUP inputs there would be more sums than registers: the pairs are then shared among launches,
each with two halves of GROUP inputs at most, and an input is read several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations, combinations_with_replacement
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import Gram
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    LaunchTable,
    Layout,
    grouped,
    launch_options,
    launch_table,
    tensor_bytes,
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, load, locate
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, ROW, WIDTH, WIDTH_LEVELS, TreeSums, adjacent_pair_tree

GROUP = 8
"""Inputs of a launch, at most."""
Pairs: TypeAlias = tuple[tuple[int, int], ...]


@triton.jit
def _gram_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [chunks, 2]
    partials_ptr,  # float64 [chunks, pairs, GROUPS]
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PAIRS: tl.constexpr,  # (i, j) of each sum
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_LEVELS: tl.constexpr,
):
    row_ptr, _, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), CHUNK, GROUPS)
    group = tl.program_id(0) % GROUPS
    lane = tl.arange(0, WIDTH)
    sums = (tl.zeros((WIDTH,), tl.float32),) * len(PAIRS)
    whole = left // ROW * ROW
    at += group * WIDTH
    for row in range(0, whole, ROW):
        sums = add_products(sums, row_ptr, at + row, lane, WIDTH, INPUTS, BASE, ALIGNED, PAIRS)
    left -= whole + group * WIDTH
    if left > 0:
        sums = add_products(sums, row_ptr, at + whole, lane, left, INPUTS, BASE, False, PAIRS)
    partials_ptr += (tl.program_id(0) // GROUPS).to(tl.int64) * (len(PAIRS) * GROUPS) + group
    for pair in tl.static_range(len(PAIRS)):
        tl.store(partials_ptr + pair * GROUPS, adjacent_pair_tree(sums[pair].to(tl.float64), WIDTH_LEVELS))


@triton.jit
def add_products(
    sums,  # one [WIDTH] per pair
    row_ptr,
    at,
    lane,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PAIRS: tl.constexpr,
):
    values = ()
    if BASE is not None:
        base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    for m in tl.static_range(len(INPUTS)):
        value = load(row_ptr + INPUT_SLOT + m, at, lane, left, INPUTS[m], ALIGNED)
        if BASE is not None:
            value -= base
        values = values + (value,)
    added = ()
    for pair in tl.static_range(len(PAIRS)):
        added = added + (sums[pair] + values[PAIRS[pair][0]] * values[PAIRS[pair][1]],)
    return added


def gram(tiles: Tiles, spec: Gram, workspace: Workspace) -> list[list[float]]:
    """[M, M] symmetric. Products are rounded to float32, sums follow `reduction_tree`."""
    dots: list[list[float]] = awaited([gram_batch([(spec, tiles)], workspace)])[0][0]
    return dots


def gram_batch(jobs: Sequence[tuple[Gram, Tiles]], workspace: Workspace) -> Pending:
    """[M, M] for each job. A launch per round of tiles and layout, one for the tree, no wait."""
    sums = TreeSums(workspace)
    sizes = dict.fromkeys(range(len(jobs)), 0)  # M
    for tiles in rounds([tiles for _, tiles in jobs]):
        sizes |= {job: len(tile.inputs) for job, tile in tiles}
        parts = [(job, share, part_of(tile, share)) for job, tile in tiles for share in shares(len(tile.inputs))]
        alike = grouped(((Layout.of(part), share.pairs), ((job, share), part)) for job, share, part in parts)
        for (layout, pairs), group in alike.items():
            _launch(layout, pairs, [key for key, _ in group], [part for _, part in group], sums)
    counts = {(job, share): len(share.pairs) for job, size in sizes.items() for share in shares(size)}
    return Pending(sums.totals(counts), lambda totals: _matrices(list(sizes.values()), totals))


def pending_arrays(sums: Sequence[tuple[int, Tensor]]) -> Pending:
    """[M, M] of arrays [L] for each job, from its M and float64 [pairs, L], the pairs of one share after another."""
    lengths = [of_job.numel() for _, of_job in sums]

    def finish(totals: list[float]) -> list[Any]:
        parts = np.split(np.array(totals, dtype=np.float64), np.cumsum(lengths)[:-1])
        arrays = [part.reshape(of_job.shape) for part, (_, of_job) in zip(parts, sums, strict=True)]
        return _matrices([m for m, _ in sums], chain.from_iterable(arrays))

    return Pending(torch.cat([of_job.flatten() for _, of_job in sums]), finish)


@dataclass(frozen=True, slots=True)
class Share:
    """What a launch sums."""

    inputs: tuple[int, ...]
    pairs: Pairs
    """Places in `inputs`."""


@lru_cache(maxsize=64)
def shares(m: int) -> tuple[Share, ...]:
    """All pairs of m inputs: in one share, or in one per two halves."""
    if m <= GROUP:
        return (Share(tuple(range(m)), tuple((i, j) for i in range(m) for j in range(i, m))),)
    half = GROUP // 2
    halves = [tuple(range(at, min(at + half, m))) for at in range(0, m, half)]
    shares = []
    for a, b in combinations(range(len(halves)), 2):
        inputs = halves[a] + halves[b]
        # A half's own pairs are in the share with its successor, the last one's in that with its predecessor.
        own = (b == a + 1, a == len(halves) - 2)
        side = [0] * len(halves[a]) + [1] * len(halves[b])
        places = combinations_with_replacement(range(len(inputs)), 2)
        shares.append(Share(inputs, tuple((i, j) for i, j in places if side[i] != side[j] or own[side[i]])))
    return tuple(shares)


def part_of(tile: Tile, share: Share) -> Tile:
    """The tile with the inputs of the share alone."""
    return Tile(tile.start, [tile.inputs[i] for i in share.inputs], tile.base, tile.compute)


def _launch(layout: Layout, pairs: Pairs, keys: list[Any], tiles: list[Tile], sums: TreeSums) -> None:
    table = launch_table(tiles, None, sums.workspace.device, CHUNK)
    launch_products(table, layout, pairs, sums.partials(keys, tiles, len(pairs)))


def launch_products(table: LaunchTable, layout: Layout, pairs: Pairs, partials: Tensor) -> None:
    """Fill the partials [chunks, pairs, GROUPS] of `reduction_tree` for the chunks of the table."""
    if table.programs:
        _gram_kernel[(table.programs * GROUPS,)](
            table.rows,
            table.blocks,
            partials,
            **layout.constants(),
            PAIRS=pairs,
            CHUNK=CHUNK,
            GROUPS=GROUPS,
            WIDTH=WIDTH,
            WIDTH_LEVELS=WIDTH_LEVELS,
            **launch_options(WIDTH, per_thread=lanes_per_thread(len(layout.inputs))),
        )


def lanes_per_thread(m: int) -> int:
    """Lanes of a thread: as many as there are registers for their sums."""
    return 8 if m <= 4 else 4


def _matrices(sizes: list[int], totals: Iterable[Any]) -> list[list[list[Any]]]:
    """The matrix of each job, from the sums of its shares."""
    matrices = []
    values = iter(totals)
    for m in sizes:
        dots: list[list[Any]] = [[0.0] * m for _ in range(m)]
        for share in shares(m):
            for i, j in share.pairs:
                a, b = share.inputs[i], share.inputs[j]
                dots[a][b] = dots[b][a] = next(values)
        matrices.append(dots)
    return matrices


def bytes_moved(tile: Tile) -> int:
    """Each input and the base once; with more than GROUP inputs, once in each share."""
    return sum(tensor_bytes(part_of(tile, share)) for share in shares(len(tile.inputs)))


CLAIMS = {
    "_gram_kernel": Claim(
        registers={2: 76, 4: 168, 8: 248},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= 4 else 64,
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Of deltas."""
    n = CHUNK + 5
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    return {"deltas": lambda workspace: gram_batch([(Gram(), [tile])], workspace)}
