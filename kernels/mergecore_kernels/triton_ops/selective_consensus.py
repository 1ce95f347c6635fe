"""Average the selected deltas that have the elected sign: SCE's combination in one pass.

Reads every input and the base once and writes the output once. All deltas of an element stay in registers: their
squared deviations decide whether it is selected, then they vote, then those that agree are averaged. Step by step in
torch it would be some 10 M passes over float32 temporaries.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Key, SelectiveConsensus, Trim
from mergecore_kernels.torch_ops.arithmetic import rounded
from mergecore_kernels.torch_ops.selective_consensus import LEAST_TOTAL
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import BLOCK, Layout, grouped, launch, tensor_bytes, to_device
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
from mergecore_kernels.triton_ops.masks import MASK_WORDS, load_mask, mask_kinds, mask_words, word
from mergecore_kernels.triton_ops.trim import float_bits
from mergecore_kernels.triton_ops.variances import select

_LEAST = tl.constexpr(rounded(LEAST_TOTAL, torch.float32))
_SIGN = tl.constexpr(-(1 << 31))
_SELECTION = tl.constexpr(MASK_WORDS)

WIDE = 8
"""Models, at most, for which a thread has registers enough for 8 elements: 128 bits of a 16-bit dtype."""


@triton.jit
def _selective_consensus_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    words_ptr,  # int32 [jobs, MASK_WORDS + M]: the selection; weights
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    KIND: tl.constexpr,  # of the selection: see masks.py
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    words_ptr += job * (_SELECTION + len(INPUTS))
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, words_ptr, at, 0, whole, INPUTS, BASE, OUT, True, KIND, BLOCK)
        if whole < left:
            _body(row_ptr, words_ptr, at, whole, left - whole, INPUTS, BASE, OUT, False, KIND, TAIL)
    else:
        _body(row_ptr, words_ptr, at, 0, left, INPUTS, BASE, OUT, False, KIND, BLOCK)


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
    KIND: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at + skip, lane, left, BASE, ALIGNED)
    deltas = ()
    for m in tl.static_range(len(INPUTS)):
        deltas = deltas + (load(row_ptr + (INPUT_SLOT + m), at + skip, lane, left, INPUTS[m], ALIGNED) - base,)
    mask = load_mask(words_ptr, tl.load(row_ptr + START) + at, KIND)
    deltas = select(deltas, mask, (lane + skip).to(tl.uint32), KIND)
    total = _elected_mean(deltas, words_ptr + _SELECTION) + base
    store(total, row_ptr + OUT_SLOT, at + skip, lane, left, OUT, ALIGNED)


@triton.jit
def _elected_mean(
    deltas,  # M x float32 [LANES]
    weights_ptr,  # int32 [M]
):
    """float32 [LANES]: Σ eᵢ δᵢ / max(Σ eᵢ, 1e-6)."""
    vote = deltas[0]
    for m in tl.static_range(1, len(deltas)):
        vote += deltas[m]
    sign = vote.to(tl.int32, bitcast=True) & _SIGN
    for m in tl.static_range(len(deltas)):
        # With the elected sign taken out, what agrees is positive.
        value = (deltas[m].to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
        weight = tl.where(value > 0.0, word(weights_ptr + m, tl.float32), 0.0)
        if m == 0:
            total, divisor = deltas[m] * weight, weight
        else:
            total += deltas[m] * weight
            divisor += weight
    return tl.div_rn(total, tl.maximum(divisor, _LEAST))


_Job: TypeAlias = tuple[SelectiveConsensus, Tile, Tensor]


def selective_consensus(tile: Tile, spec: SelectiveConsensus, out: Tensor, workspace: Workspace) -> None:
    """[n] base + Σ eᵢ δᵢ / max(Σ eᵢ, 1e-6), eᵢ the model's weight where its delta agrees, else 0."""
    selective_consensus_batch([(spec, tile, out)], workspace)


def selective_consensus_batch(jobs: Sequence[_Job], workspace: Workspace) -> None:
    """A launch for each group of jobs that are alike. The host doesn't wait."""
    # Hash keys hold for 2³² elements, so a tile that goes beyond is two jobs.
    pieces = [
        (spec, piece, out[piece.start - tile.start :][: len(piece)])
        for spec, tile, out in jobs
        for piece in tile.pieces(HASH_RANGE)
        if len(piece)
    ]
    for (layout, kind), group in grouped((_kind(job), job) for job in pieces).items():
        words = to_device(np.array([_words(job) for job in group], dtype=np.uint32).view(np.int32), workspace.device)
        tiles, outs = [tile for _, tile, _ in group], [out for _, _, out in group]
        per_thread = 8 if len(layout.inputs) <= WIDE else 4
        launch(
            _selective_consensus_kernel, layout, tiles, outs, workspace.device, words, per_thread=per_thread, KIND=kind
        )


def _kind(job: _Job) -> Hashable:
    """What the kernel is compiled for."""
    spec, tile, out = job
    return Layout.of(tile, out), mask_kinds((spec.selection,))[0]


def _words(job: _Job) -> list[int]:
    """[MASK_WORDS + M] what differs from job to job, as 32-bit words."""
    spec, tile, _ = job
    weights = [float_bits(rounded(weight, torch.float32)) for weight in spec.weights]
    return [*mask_words(spec.selection, tile.start), *weights]


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """Each input, the base and the output once, which is the least possible."""
    return tensor_bytes(tile, out)


CLAIMS = {
    "_selective_consensus_kernel": Claim(
        registers={2: 88, 4: 106, 8: 200, 16: 210},
        bytes_per_element=bytes_once,
        width_bits=lambda constants: 128 if len(constants["INPUTS"]) <= WIDE else 64,
        divides=lambda constants: True,
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Of all elements, and of the selected ones."""
    n = BLOCK + 5
    inputs, out = [torch.zeros(n, dtype=dtype) for _ in range(m)], torch.zeros(n, dtype=dtype)
    tile = Tile(0, inputs, out, torch.float32)
    selections = {"all": None, "selected": Trim(1.0, 1, Key.of("example", 0, "", 0))}
    return {
        name: partial(selective_consensus, tile, SelectiveConsensus((1.0,) * m, selection), out)
        for name, selection in selections.items()
    }
