"""Masked deltas, weighted, summed or elected, and added to the base: TIES, breadcrumbs and DARE in one pass each; DELLA
in one after those that rank (see ranked_drop.py), which also reads a byte per model and element.

Reads every input and the base once and writes the output once. All deltas of an element stay in registers: first they
vote, then those that agree are summed. Beside the mask (see masks.py) a model takes 8 instructions per element: cast,
difference, product and vote; then sign, comparison and two sums.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Consensus, Drop, Key, Mask, RankedDrop, Trim
from mergecore_kernels.torch_ops.arithmetic import rounded
from mergecore_kernels.torch_ops.consensus import consensus as twin
from mergecore_kernels.torch_ops.consensus import factors
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
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
from mergecore_kernels.triton_ops.loading import (
    BASE_SLOT,
    INPUT_SLOT,
    OUT_SLOT,
    START,
    TAIL,
    load,
    locate,
    store,
    whole_part,
)
from mergecore_kernels.triton_ops.masks import (
    MASK_WORDS,
    KernelMask,
    hashes,
    kernel_masks,
    load_mask,
    mask_kinds,
    mask_words,
    masked,
    word,
)
from mergecore_kernels.triton_ops.trim import float_bits

WIDE = 12
"""Models, at most, for which a thread has registers enough for 8 elements: 128 bits of a 16-bit dtype."""
_SIGN = tl.constexpr(-(1 << 31))
_MODEL_WORDS = tl.constexpr(2 + MASK_WORDS)


@triton.jit
def _consensus_kernel(
    rows_ptr,  # int64 [jobs, 4 + M], the launch table
    blocks_ptr,  # int64 [programs, 2], the same
    words_ptr,  # int32 [jobs, 1 + M · _MODEL_WORDS]: scale; of each model factor, weight, mask
    INPUTS: tl.constexpr,  # [M] dtypes
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    KINDS: tl.constexpr,  # [M] kinds of masks
    ELECT: tl.constexpr,
    MEAN: tl.constexpr,  # with election: divide by the weights of those that agree
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    words_ptr += job * (1 + len(INPUTS) * _MODEL_WORDS)
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, words_ptr, at, 0, whole, INPUTS, BASE, OUT, True, KINDS, ELECT, MEAN, BLOCK)
        if whole < left:
            _body(row_ptr, words_ptr, at, whole, left - whole, INPUTS, BASE, OUT, False, KINDS, ELECT, MEAN, TAIL)
    else:
        _body(row_ptr, words_ptr, at, 0, left, INPUTS, BASE, OUT, False, KINDS, ELECT, MEAN, BLOCK)


@triton.jit
def _body(
    row_ptr,
    words_ptr,
    at,  # int64: the program's first element, in the tile
    skip,  # int32: elements of the program that come before these
    left,  # int32: elements
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    KINDS: tl.constexpr,
    ELECT: tl.constexpr,
    MEAN: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    offset = (lane + skip).to(tl.uint32)
    index = tl.load(row_ptr + START) + at
    base = load(row_ptr + BASE_SLOT, at + skip, lane, left, BASE, ALIGNED)
    deltas = ()
    for m in tl.static_range(len(INPUTS)):
        model_ptr = words_ptr + (1 + m * _MODEL_WORDS)
        delta = load(row_ptr + (INPUT_SLOT + m), at + skip, lane, left, INPUTS[m], ALIGNED) - base
        mask = load_mask(model_ptr + 2, index, KINDS[m])
        delta = masked(delta, mask, offset, KINDS[m]) * word(model_ptr, tl.float32)
        deltas += (delta,)
        if m == 0:
            total = delta
        else:
            total += delta
    if ELECT:
        total = _elected_sum(total, deltas, words_ptr, MEAN)
    total = total * word(words_ptr, tl.float32) + base
    store(total, row_ptr + OUT_SLOT, at + skip, lane, left, OUT, ALIGNED)


@triton.jit
def _elected_sum(
    vote,  # float32 [LANES]: the sum of the weighted deltas
    deltas,  # M x float32 [LANES]: the weighted deltas
    words_ptr,
    MEAN: tl.constexpr,
):
    """float32 [LANES]: Σ of the deltas that have the vote's sign, over the sum of their weights if MEAN.

    On bits: with the elected sign taken out, a delta agrees if its bits are a positive integer. Sums are chosen rather
    than summands, which is one predicated addition per model; they never are -0, so that adding +0 would change
    nothing.
    """
    sign = vote.to(tl.int32, bitcast=True) & _SIGN
    total = tl.zeros_like(vote)
    divisor = tl.zeros_like(vote)
    for m in tl.static_range(len(deltas)):
        bits = deltas[m].to(tl.int32, bitcast=True) ^ sign
        agrees = bits > 0
        value = bits.to(tl.float32, bitcast=True)
        total = tl.where(agrees, value, 0.0) if m == 0 else tl.where(agrees, total + value, total)
        if MEAN:
            weight = word(words_ptr + (2 + m * _MODEL_WORDS), tl.float32)
            divisor = tl.where(agrees, weight, 0.0) if m == 0 else tl.where(agrees, divisor + weight, divisor)
    if MEAN:
        total = tl.div_rn(total, tl.where(divisor == 0.0, 1.0, divisor))
    return (total.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


_Job: TypeAlias = tuple[Consensus, Tile, Tensor]
_Part: TypeAlias = tuple[Consensus, Tile, Tensor, tuple[KernelMask, ...]]


def consensus(tile: Tile, spec: Consensus, out: Tensor, workspace: Workspace) -> None:
    """[n] base + scale · combined deltas, each step rounded to float32."""
    consensus_batch([(spec, tile, out)], workspace)


def consensus_batch(jobs: Sequence[_Job], workspace: Workspace) -> None:
    """A launch for each group of jobs that are alike. The host doesn't wait."""
    assert all(tile.compute == torch.float32 for _, tile, _ in jobs), "float64 is left to the torch twin"
    pieces = [piece for job in jobs for piece in _pieces(job, workspace)]
    masks = kernel_masks([(spec.masks, tile) for spec, tile, _ in pieces], workspace)
    parts = [(*piece, of_piece) for piece, of_piece in zip(pieces, masks, strict=True)]
    for (layout, kinds, elect, mean), group in grouped((_kind(part), part) for part in parts).items():
        block, per_thread = (BLOCK, 8) if len(kinds) <= WIDE else (BLOCK // 2, 4)
        table = launch_table(
            [tile for _, tile, _, _ in group], [out for _, _, out, _ in group], workspace.device, block
        )
        words = to_device(np.array([_words(part) for part in group], dtype=np.uint32).view(np.int32), workspace.device)
        _consensus_kernel[(table.programs,)](
            table.rows,
            table.blocks,
            words,
            **layout.constants(),
            KINDS=kinds,
            ELECT=elect,
            MEAN=mean,
            BLOCK=block,
            **launch_options(block, per_thread),
        )


def _pieces(job: _Job, workspace: Workspace) -> list[_Job]:
    """What is launched for a job. Hash keys hold for 2³² elements, so a tile that goes beyond is two pieces.

    Rows begin anywhere, but the hashes of the other masks need programs that begin at multiples of their length. No
    method has both, and a combination that does is left to the torch twin.
    """
    spec, tile, out = job
    if not len(tile):
        return []
    if not any(isinstance(mask, RankedDrop) for mask in spec.masks):
        return [(spec, piece, out[piece.start - tile.start :][: len(piece)]) for piece in tile.pieces(HASH_RANGE)]
    if not any(hashes(mask) for mask in spec.masks):
        return [job]
    twin(tile, spec, out, workspace)
    return []


def _kind(part: _Part) -> Hashable:
    """What the kernel is compiled for."""
    spec, tile, out, masks = part
    return Layout.of(tile, out), mask_kinds(masks), spec.elect, spec.elect and spec.normalize


def _words(part: _Part) -> list[int]:
    """[1 + M · _MODEL_WORDS] what differs from job to job, as 32-bit words."""
    spec, tile, _, masks = part
    words = [float_bits(rounded(spec.scale, torch.float32))]
    for factor, weight, mask in zip(factors(spec, torch.float32), spec.weights, masks, strict=True):
        words += [float_bits(factor), float_bits(rounded(weight, torch.float32)), *mask_words(mask, tile.start)]
    return words


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """Each input, the base and the output once, which is the least possible."""
    return tensor_bytes(tile, out)


CLAIMS = {
    "_consensus_kernel": Claim(
        registers={2: 68, 4: 84, 8: 144, 12: 206, 16: 150},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= WIDE else 64,
        divides=lambda constants: bool(constants["MEAN"]),
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """TIES where no magnitude equals the k-th, TIES, breadcrumbs with election, DARE with and without; 16 models;
    DELLA.
    """
    n = 8 * BLOCK + 5  # as a row it is too long for the kernel that sorts, which ranked_drop.py shows
    inputs = [torch.zeros(n, dtype=dtype) for _ in range(m)]
    mixed = [x.to(torch.float32) if i % 2 else x for i, x in enumerate(inputs)]
    out, key = torch.zeros(n, dtype=dtype), Key.of("example", 0, "", 0)
    ties, drop = Trim(1.0, 1, key), Drop.keeping(0.5, key)

    def launch(mask: Mask, elect: bool, normalize: bool, xs: list[Tensor]) -> Callable[[Workspace], object]:
        ones = (1.0,) * len(xs)
        spec = Consensus(ones, (mask,) * len(xs), ones, elect, normalize, scale=1.0)
        return partial(consensus, Tile(0, xs, out, torch.float32), spec, out)

    shown: Examples = {
        "trim without ties, mean": launch(Trim(1.0, HASH_RANGE - 1, key), True, True, inputs),
        "trim, mean": launch(ties, True, True, inputs),
        "drop, sum": launch(drop, True, False, inputs),
    }
    if m == 2:
        shown |= {
            "band, sum": launch(Trim(1.0, 1, key, 2.0, 1), True, False, inputs),
            "drop, not elected": launch(drop, False, True, inputs),
            "mixed dtypes": launch(drop, True, False, mixed),
            "kept, mean": launch(RankedDrop(0.5, 0.1, n, key), True, True, inputs),
            "float8": launch(drop, True, False, [x.to(torch.float8_e4m3fn) for x in inputs]),
        }
    if m == 8:
        shown["drop, sum of 16"] = launch(drop, True, False, inputs * 2)
    return shown
