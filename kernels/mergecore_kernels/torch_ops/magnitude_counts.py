"""How often each magnitude occurs among the elements of the deltas: histograms that can be added over tensors.

The float32 |δ| is taken as an integer of 31 bits, which has the same order. One pass counts its first 16 bits; a second
one counts the other 15 bits of those that begin with given ones. Together they give the exact k-th magnitude of deltas
that lie in many tensors. NaN counts as Inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import MAGNITUDE_LOW_BITS, MagnitudeCounts
from mergecore_kernels.torch_ops.deltas import load_deltas
from mergecore_kernels.torch_ops.sieve import INFINITY
from mergecore_kernels.torch_ops.tile import PIECE, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

_LOW = 1 << MAGNITUDE_LOW_BITS


def magnitude_counts(tiles: Tiles, spec: MagnitudeCounts, workspace: Workspace) -> list[dict[int, int]]:
    """[M] number of elements by the bits that are asked for; bits that don't occur are left out."""
    totals: list[Tensor] = []
    for tile in tiles:
        for piece in tile.pieces(PIECE):
            _, deltas = load_deltas(piece, workspace)
            found = [_counts(delta, first) for delta, first in zip(deltas, spec.first_bits, strict=True)]
            totals = [total + more for total, more in zip(totals, found, strict=True)] if totals else found
    return [_as_dict(total) for total in totals] if totals else [{} for _ in spec.first_bits]


def _counts(delta: Tensor, first_bits: int | None) -> Tensor:
    """int64 histogram of one piece."""
    bits = (delta.to(torch.float32).view(torch.int32) & 0x7FFFFFFF).clamp_(max=INFINITY)
    first = bits >> MAGNITUDE_LOW_BITS
    if first_bits is None:
        return torch.bincount(first, minlength=(INFINITY >> MAGNITUDE_LOW_BITS) + 1)
    return torch.bincount(bits[first == first_bits] & (_LOW - 1), minlength=_LOW)


def _as_dict(counts: Tensor) -> dict[int, int]:
    present = counts.nonzero().view(-1)
    return dict(zip(present.tolist(), counts[present].tolist(), strict=True))
