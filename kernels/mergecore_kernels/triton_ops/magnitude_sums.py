"""The sum of each delta's magnitudes, before and after its mask, in one pass that stores no mask.

A program adds 512 lanes of a chunk, row after row, both sums of all models at once; `reduction_tree` does the rest.
With more than GROUP models there would be more sums than registers: they are shared among launches, each of which
reads the base.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from mergecore_kernels.operations import HASH_RANGE, Drop, Key, MagnitudeSums, RankedDrop, Trim, row_length
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.batches import Pending, awaited, rounds
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    BLOCK,
    Layout,
    grouped,
    launch_options,
    launch_table,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, START, load, locate
from mergecore_kernels.triton_ops.masks import (
    MASK_WORDS,
    Kept,
    KernelMask,
    kernel_masks,
    load_mask,
    mask_kinds,
    mask_words,
    masked,
)
from mergecore_kernels.triton_ops.reduction_tree import GROUPS, ROW, WIDTH, WIDTH_LEVELS, TreeSums, adjacent_pair_tree

GROUP = 8
"""Models of a launch, at most."""
WIDE = 4
"""Models, at most, for which a thread has registers enough for the sums of 8 lanes: 128 bits of a 16-bit dtype."""


@triton.jit
def _magnitude_sums_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [chunks, 2]
    words_ptr,  # int32 [jobs, M, MASK_WORDS]
    partials_ptr,  # float64 [chunks, 2 M, GROUPS]: before and after the mask, of each model
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    KINDS: tl.constexpr,  # [M] kinds of masks
    MASK_WORDS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_LEVELS: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), CHUNK, GROUPS)
    words_ptr += job * (len(INPUTS) * MASK_WORDS)
    index = tl.load(row_ptr + START) + at
    masks = ()
    for m in tl.static_range(len(INPUTS)):
        masks += (load_mask(words_ptr + m * MASK_WORDS, index, KINDS[m]),)
    group = tl.program_id(0) % GROUPS
    lane = group * WIDTH + tl.arange(0, WIDTH)
    sums = (tl.zeros((WIDTH,), tl.float32),) * (2 * len(INPUTS))
    whole = left // ROW * ROW
    for row in range(0, whole, ROW):
        sums = _add_magnitudes(sums, row_ptr, at, row, lane, ROW, masks, INPUTS, BASE, ALIGNED, KINDS)
    if whole < left:
        sums = _add_magnitudes(sums, row_ptr, at, whole, lane, left - whole, masks, INPUTS, BASE, False, KINDS)
    partials_ptr += (tl.program_id(0) // GROUPS).to(tl.int64) * (2 * len(INPUTS) * GROUPS) + group
    for i in tl.static_range(2 * len(INPUTS)):
        tl.store(partials_ptr + i * GROUPS, adjacent_pair_tree(sums[i].to(tl.float64), WIDTH_LEVELS))


@triton.jit
def _add_magnitudes(
    sums,  # 2 M x float32 [WIDTH]
    row_ptr,
    at,  # int64: the program's first element, in the tile
    row,  # int32: the row's first element, in the chunk
    lane,  # int32 [WIDTH]
    left,  # int32: elements of the row
    masks,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    KINDS: tl.constexpr,
):
    base = load(row_ptr + BASE_SLOT, at + row, lane, left, BASE, ALIGNED)
    added = ()
    for m in tl.static_range(len(INPUTS)):
        magnitude = tl.abs(load(row_ptr + (INPUT_SLOT + m), at + row, lane, left, INPUTS[m], ALIGNED) - base)
        kept = masked(magnitude, masks[m], (row + lane).to(tl.uint32), KINDS[m])
        added += (sums[2 * m] + magnitude, sums[2 * m + 1] + kept)
    return added


def magnitude_sums(tiles: Tiles, spec: MagnitudeSums, workspace: Workspace) -> list[tuple[float, float]]:
    """[M] (Σ|δ|, Σ|δ| over what the mask keeps). Sums follow `reduction_tree`; what is masked counts as +0."""
    sums: list[tuple[float, float]]
    ((sums,),) = awaited([magnitude_sums_batch([(spec, tiles)], workspace)])
    return sums


def magnitude_sums_batch(jobs: Sequence[tuple[MagnitudeSums, Tiles]], workspace: Workspace) -> Pending:
    """[M] for each job. A launch per round of tiles and kind, one for the tree, no wait."""
    sums = TreeSums(workspace)
    for tiles in rounds([_with_bytes(spec, tiles, workspace) for spec, tiles in jobs]):
        parts = [part for job, tile in tiles for part in _parts(job, jobs[job][0], tile)]
        for (layout, kinds), group in grouped((part.kind(), part) for part in parts).items():
            _launch(layout, kinds, group, sums)
    sizes = [len(spec.masks) for spec, _ in jobs]
    counts = {(job, at): 2 * (end - at) for job, m in enumerate(sizes) for at, end in _shares(m)}
    return Pending(sums.totals(counts), lambda totals: _pairs(sizes, totals))


@dataclass(frozen=True, slots=True)
class _Part:
    """Some models of a tile, within one block of hashes."""

    sums: Hashable
    """Which sums these are a part of."""
    tile: Tile
    masks: tuple[KernelMask, ...]

    def kind(self) -> Hashable:
        """What the kernel is compiled for."""
        return Layout.of(self.tile), mask_kinds(self.masks)

    def words(self) -> list[list[int]]:
        """[M, MASK_WORDS] what differs from job to job."""
        return [mask_words(mask, self.tile.start) for mask in self.masks]


def _with_bytes(spec: MagnitudeSums, tiles: Tiles, workspace: Workspace) -> Tiles:
    """The tiles, with the bytes that say what each ranked drop keeps as further inputs.

    A byte depends on the whole row, so that rows are put together, and cut at chunks again.
    """
    columns = row_length(spec)
    if columns == 1:
        return tiles
    return row_tiles(_rows_with_bytes(spec, row_tiles(tiles, columns), workspace), CHUNK)


def _rows_with_bytes(spec: MagnitudeSums, tiles: Iterator[Tile], workspace: Workspace) -> Iterator[Tile]:
    for tile in tiles:
        (masks,) = kernel_masks([(spec.masks, tile)], workspace)
        kept = [mask.kept[: len(tile)] for mask in masks if isinstance(mask, Kept)]
        yield Tile(tile.start, [*tile.inputs, *kept], tile.base, tile.compute)


def _parts(job: int, spec: MagnitudeSums, tile: Tile) -> Iterator[_Part]:
    assert tile.compute == torch.float32, "float64 is left to the torch twin"
    kept = iter(tile.inputs[len(spec.masks) :])
    # Copies, as the kernel reads beyond the end and wants the first one aligned.
    masks = tuple(
        Kept(pad(next(kept), (0, BLOCK)), tile.start) if isinstance(mask, RankedDrop) else mask for mask in spec.masks
    )
    for at, end in _shares(len(spec.masks)):
        some = Tile(tile.start, tile.inputs[at:end], tile.base, tile.compute)
        for piece in some.pieces(HASH_RANGE):
            yield _Part((job, at), piece, masks[at:end])


def _shares(m: int) -> list[tuple[int, int]]:
    """The models of each launch: begin and end."""
    return [(at, min(at + GROUP, m)) for at in range(0, m, GROUP)]


def _launch(layout: Layout, kinds: tuple[str, ...], parts: list[_Part], sums: TreeSums) -> None:
    tiles, device = [part.tile for part in parts], sums.workspace.device
    table = launch_table(tiles, None, device, CHUNK)
    partials = sums.partials([part.sums for part in parts], tiles, 2 * len(kinds))
    words = np.array([part.words() for part in parts], dtype=np.uint32).view(np.int32)
    if table.programs:
        _magnitude_sums_kernel[(table.programs * GROUPS,)](
            table.rows,
            table.blocks,
            to_device(words, device),
            partials,
            **layout.constants(),
            KINDS=kinds,
            MASK_WORDS=MASK_WORDS,
            CHUNK=CHUNK,
            GROUPS=GROUPS,
            WIDTH=WIDTH,
            WIDTH_LEVELS=WIDTH_LEVELS,
            **launch_options(WIDTH, per_thread=8 if len(kinds) <= WIDE else 4),
        )


def _pairs(sizes: list[int], totals: list[float]) -> list[list[tuple[float, float]]]:
    """The sums of each job."""
    pairs = iter(zip(totals[0::2], totals[1::2], strict=True))
    return [[next(pairs) for _ in range(m)] for m in sizes]


def bytes_moved(tile: Tile) -> int:
    """Each input once; the base once, or with more than GROUP models once for each GROUP of them."""
    return sum(
        tensor_bytes(Tile(tile.start, tile.inputs[at:end], tile.base, tile.compute))
        for at, end in _shares(len(tile.inputs))
    )


CLAIMS = {
    "_magnitude_sums_kernel": Claim(
        registers={2: 126, 4: 162, 8: 238},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= WIDE else 64,
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """After a drop, as DARE measures it; after a trim, as TIES with rescaling does; after DELLA's ranked drop."""
    n = CHUNK + 5
    tile = Tile(0, [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype), torch.float32)
    key = Key.of("example", 0, "", 0)
    specs = {
        "drop": MagnitudeSums((Drop.keeping(0.5, key),) * m),
        "trim with ties": MagnitudeSums((Trim(1.0, 1, key),) * m),
    }
    if m == 2:
        specs["kept"] = MagnitudeSums((RankedDrop(0.5, 0.1, n, key),) * m)
    return {name: partial(_example, spec, tile) for name, spec in specs.items()}


def _example(spec: MagnitudeSums, tile: Tile, workspace: Workspace) -> Pending:
    return magnitude_sums_batch([(spec, [tile])], workspace)
