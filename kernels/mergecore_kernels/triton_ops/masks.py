"""Masks of deltas in kernels: the kinds they are compiled for, and the table of what differs from job to job.

    kind   keeps                                                                   instructions per element
    all    everything                                                              0
    trim   |δ| ≥ T                                                                 2
    ties   |δ| > T, or = T with a hash of at most the cut                          14
    band   the same, without |δ| > U, or = U with a hash of at most another cut    17
    drop   a hash of at most the last one that is kept                             12
    none   nothing                                                                 0
    kept   what another kernel has said, in a byte per element: DELLA's            2

The table has MASK_WORDS 32-bit words for each model of a job: the two words of the key, then those of the kind. For a
mask of bytes they are those of an address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Drop, Mask, RankedDrop, Trim
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.counter_hash import hash_offsets, hash_seed
from mergecore_kernels.triton_ops.drop import drop_words, kept_by_drop
from mergecore_kernels.triton_ops.ranked_drop import kept_batch
from mergecore_kernels.triton_ops.trim import bound_by_hash, float_bits, kept_by_band, kept_by_trim, trim_words

MASK_WORDS = 8
_EVERYTHING = [0, 0, HASH_RANGE - 1, float_bits(-1.0), float_bits(-1.0), 0, float_bits(inf), float_bits(inf)]
"""The last hash is that of all for a drop, the bounds are below every magnitude for a trim."""
_TRIMS = ("all", "trim", "ties", "band")
_DROPS = ("all", "drop")


@triton.jit
def load_mask(
    words_ptr,  # int32 [MASK_WORDS]
    index,  # int64: the program's first element, in the whole tensor
    KIND: tl.constexpr,
):
    """What `masked` needs to know: scalars, as many as there are for the kind."""
    if KIND == "trim":
        mask = (word(words_ptr + 3, tl.float32),)
    elif KIND == "all" or KIND == "none":
        mask = ()
    elif KIND == "kept":
        address = (word(words_ptr + 1, tl.uint32).to(tl.int64) << 32) | word(words_ptr, tl.uint32).to(tl.int64)
        mask = (tl.multiple_of((address + index).to(tl.pointer_type(tl.uint8)), 16),)
    else:
        mask = (
            hash_seed(index, word(words_ptr, tl.uint32)),
            word(words_ptr + 1, tl.uint32),
            word(words_ptr + 2, tl.uint32),
        )
    if KIND == "ties" or KIND == "band":
        mask += (word(words_ptr + 3, tl.float32), word(words_ptr + 4, tl.float32))
    if KIND == "band":
        mask += (word(words_ptr + 5, tl.uint32), word(words_ptr + 6, tl.float32), word(words_ptr + 7, tl.float32))
    return mask


@triton.jit
def masked(
    delta,  # float32 [LANES]
    mask,  # of `load_mask`
    offset,  # uint32 [LANES]: the elements, counted from the program's first
    KIND: tl.constexpr,
):
    """float32 [LANES]: the delta where the mask keeps it, else +0."""
    if KIND == "none":
        delta = tl.zeros_like(delta)
    elif KIND == "trim":
        delta = tl.where(kept_by_trim(delta, mask[0]), delta, 0.0)
    elif KIND == "kept":
        delta = tl.where(tl.load(mask[0] + offset) != 0, delta, 0.0)
    elif KIND != "all":
        hashes = hash_offsets(offset, mask[0], mask[1])
        if KIND == "drop":
            kept = kept_by_drop(hashes, mask[2])
        else:
            kept = kept_by_trim(delta, bound_by_hash(hashes, mask[2], mask[3], mask[4]))
        if KIND == "band":
            kept = kept & kept_by_band(delta, bound_by_hash(hashes, mask[5], mask[6], mask[7]))
        delta = tl.where(kept, delta, 0.0)
    return delta


@triton.jit
def word(
    word_ptr,  # int32
    DTYPE: tl.constexpr,
):
    """A 32-bit word of a table as what it stands for."""
    return tl.load(word_ptr).to(DTYPE, bitcast=True)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Which elements of a tile are kept."""

    kept: Tensor
    """uint8 [n + BLOCK] 1 or 0; the last BLOCK are read but not used. From a multiple of 16 bytes on."""
    start: int
    """Of the tile."""


KernelMask: TypeAlias = Trim | Drop | Kept | None


def kernel_masks(jobs: Sequence[tuple[Sequence[Mask], Tile]], workspace: Workspace) -> list[tuple[KernelMask, ...]]:
    """[M] masks of each job, ranked drops worked out: two launches for all that are alike.

    Tiles of jobs with ranked drops are whole rows.
    """
    ranked = [
        (mask, Tile(tile.start, [x], tile.base, tile.compute))
        for masks, tile in jobs
        for mask, x in zip(masks, tile.inputs, strict=True)
        if isinstance(mask, RankedDrop)
    ]
    kept = iter(kept_batch(ranked, workspace))
    return [
        tuple(Kept(next(kept), tile.start) if isinstance(mask, RankedDrop) else mask for mask in masks)
        for masks, tile in jobs
    ]


def mask_kinds(masks: Sequence[KernelMask]) -> tuple[str, ...]:
    """[M] what to compile for. Masks of one family share its most general kind, so that there are few kernels."""
    kinds = tuple(_kind(mask) for mask in masks)
    for family in (_TRIMS, _DROPS):
        if set(kinds) <= set(family):
            return (max(kinds, key=family.index),) * len(kinds)
    return kinds


def mask_words(mask: KernelMask, start: int) -> list[int]:
    """[MASK_WORDS] for a job that begins at element `start`; it may use any kind of the mask's family."""
    if isinstance(mask, Kept):
        # Where the bytes of the whole tensor would begin.
        address = (mask.kept.data_ptr() - mask.start) % (1 << 64)
        words = [address % HASH_RANGE, address // HASH_RANGE]
    elif mask is None or _kind(mask) == "all":
        words = _EVERYTHING
    else:
        words = trim_words(mask, start) if isinstance(mask, Trim) else drop_words(mask, start)
    return [*words, *[0] * (MASK_WORDS - len(words))]


def hashes(mask: Mask) -> bool:
    """Whether a kernel hashes elements for this mask."""
    return isinstance(mask, (Trim, Drop)) and _kind(mask) in ("ties", "band", "drop")


def _kind(mask: KernelMask) -> str:
    if mask is None:
        return "all"
    if isinstance(mask, Kept):
        return "kept"
    if isinstance(mask, Trim):
        if mask.magnitude == inf:
            return "none"
        if mask.upper < inf:
            return "band"
        return "trim" if mask.magnitude == 0.0 or mask.hash_cut >= HASH_RANGE - 1 else "ties"
    if mask.threshold >= HASH_RANGE:
        return "all"
    return "drop" if mask.threshold > 0 else "none"
