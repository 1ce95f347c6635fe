"""The sum of each delta's squares over the selected elements, in one pass that reads every tensor once.

A program adds 512 lanes of a chunk, row after row, all models at once; `reduction_tree` does the rest.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from mergecore_kernels.operations import HASH_RANGE, Energies, Key, Trim
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    Layout,
    grouped,
    launch_options,
    launch_table,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, START, load, locate
from mergecore_kernels.triton_ops.masks import MASK_WORDS, load_mask, mask_kinds, mask_words
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, ROW, WIDTH, WIDTH_LEVELS, TreeSums, adjacent_pair_tree
from mergecore_kernels.triton_ops.variances import select

WIDE = 4
"""Models, at most, for which a thread has registers enough for 8 lanes: 128 bits of a 16-bit dtype."""


@triton.jit
def _energies_kernel(
    rows_ptr,  # int64 [tiles, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [chunks, 2]
    words_ptr,  # int32 [tiles, MASK_WORDS]: the selection
    partials_ptr,  # float64 [chunks, M, GROUPS]
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    KIND: tl.constexpr,  # of the selection: see masks.py
    MASK_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_LEVELS: tl.constexpr,
):
    row_ptr, tile, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), CHUNK, GROUPS)
    mask = load_mask(words_ptr + tile * MASK_WORDS, tl.load(row_ptr + START) + at, KIND)
    group = tl.program_id(0) % GROUPS
    lane = group * WIDTH + tl.arange(0, WIDTH)
    sums = (tl.zeros((WIDTH,), tl.float32),) * len(INPUTS)
    whole = left // ROW * ROW
    for row in range(0, whole, ROW):
        sums = _add_squares(sums, row_ptr, at, row, lane, ROW, mask, INPUTS, BASE, ALIGNED, KIND)
    if whole < left:
        sums = _add_squares(sums, row_ptr, at, whole, lane, left - whole, mask, INPUTS, BASE, False, KIND)
    partials_ptr += (tl.program_id(0) // GROUPS).to(tl.int64) * (len(INPUTS) * GROUPS) + group
    for m in tl.static_range(len(INPUTS)):
        tl.store(partials_ptr + m * GROUPS, adjacent_pair_tree(sums[m].to(tl.float64), WIDTH_LEVELS))


@triton.jit
def _add_squares(
    sums,  # M x float32 [WIDTH]
    row_ptr,
    at,  # int64: the program's first element, in the tile
    row,  # int32: the row's first element, in the chunk
    lane,  # int32 [WIDTH]
    left,  # int32: elements of the row
    mask,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    KIND: tl.constexpr,
):
    base = load(row_ptr + BASE_SLOT, at + row, lane, left, BASE, ALIGNED)
    deltas = ()
    for m in tl.static_range(len(INPUTS)):
        deltas = deltas + (load(row_ptr + (INPUT_SLOT + m), at + row, lane, left, INPUTS[m], ALIGNED) - base,)
    deltas = select(deltas, mask, (row + lane).to(tl.uint32), KIND)
    added = ()
    for m in tl.static_range(len(INPUTS)):
        added = added + (sums[m] + deltas[m] * deltas[m],)
    return added


def energies(tiles: Tiles, spec: Energies, workspace: Workspace) -> list[float]:
    """[M] Σ δ². Sums follow `reduction_tree`; what isn't selected is +0."""
    sums: list[float]
    ((sums,),) = awaited([energies_batch([(spec, tiles)], workspace)])
    return sums


def energies_batch(jobs: Sequence[tuple[Energies, Tiles]], workspace: Workspace) -> Pending:
    """[M] for each job. A launch per round of tiles and kind, one for the tree, no wait."""
    sums = TreeSums(workspace)
    sizes = [0] * len(jobs)
    for tiles in rounds([tiles for _, tiles in jobs]):
        parts = [(job, piece) for job, tile in tiles for piece in tile.pieces(HASH_RANGE)]
        for job, tile in tiles:
            sizes[job] = len(tile.inputs)
        kinds = ((_kind(jobs[job][0], tile), (job, jobs[job][0].selection, tile)) for job, tile in parts)
        for (layout, kind), group in grouped(kinds).items():
            _launch(layout, kind, group, sums)
    return Pending(sums.totals(dict(enumerate(sizes))), lambda totals: _shares(sizes, totals))


def _kind(spec: Energies, tile: Tile) -> Hashable:
    """What the kernel is compiled for."""
    return Layout.of(tile), mask_kinds((spec.selection,))[0]


def _launch(layout: Layout, kind: str, parts: Sequence[tuple[int, Trim | None, Tile]], sums: TreeSums) -> None:
    tiles, m, device = [tile for _, _, tile in parts], len(layout.inputs), sums.workspace.device
    table = launch_table(tiles, None, device, CHUNK)
    partials = sums.partials([job for job, _, _ in parts], tiles, m)
    words = np.array([mask_words(selection, tile.start) for _, selection, tile in parts], dtype=np.uint32)
    if table.programs:
        _energies_kernel[(table.programs * GROUPS,)](
            table.rows,
            table.blocks,
            to_device(words.view(np.int32), device),
            partials,
            **layout.constants(),
            KIND=kind,
            MASK_WORDS=MASK_WORDS,
            CHUNK=CHUNK,
            GROUPS=GROUPS,
            WIDTH=WIDTH,
            WIDTH_LEVELS=WIDTH_LEVELS,
            **launch_options(WIDTH, per_thread=8 if m <= WIDE else 4),
        )


def _shares(sizes: list[int], totals: list[float]) -> list[list[float]]:
    """The sums of each job."""
    values = iter(totals)
    return [[next(values) for _ in range(m)] for m in sizes]


def bytes_moved(tile: Tile) -> int:
    """Each input and the base once, which is the least possible."""
    return tensor_bytes(tile)


CLAIMS = {
    "_energies_kernel": Claim(
        registers={2: 108, 4: 168, 8: 150, 16: 250},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= WIDE else 64,
        divides=lambda constants: constants["KIND"] != "all",
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Of all elements, and of the selected ones."""
    n = CHUNK + 5
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    specs = {"all": Energies(None), "selected": Energies(Trim(1.0, 1, Key.of("example", 0, "", 0)))}
    return {name: partial(_example, spec, tile) for name, spec in specs.items()}


def _example(spec: Energies, tile: Tile, workspace: Workspace) -> Pending:
    return energies_batch([(spec, [tile])], workspace)
