"""Variances over the models, element by element: which are the largest, and the deltas where they are.

Source: Wan et al. 2024, arXiv:2408.07990 (SCE), the step "select".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import KthMagnitudes, LargestVariances, Trim
from mergecore_kernels.torch_ops.arithmetic import BITS
from mergecore_kernels.torch_ops.deltas import load_deltas
from mergecore_kernels.torch_ops.order_statistics import kth_magnitudes
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.trim import trim
from mergecore_kernels.torch_ops.workspace import Workspace


def largest_variances(tiles: Tiles, spec: LargestVariances, workspace: Workspace) -> Trim | None:
    """The selection of the k elements whose deltas vary most, for `select`. One pass counts the elements that vary, the
    others are those of `kth_magnitudes`, on squared deviations as float32.
    """
    varying = sum(int(torch.count_nonzero(tile.inputs[0].to(torch.float32))) for tile in Deviations(tiles, workspace))
    k = selected(varying, spec.share)
    return kth_magnitudes(Deviations(tiles, workspace), KthMagnitudes((k,), (spec.key,)), workspace)[0]


def select(deltas: list[Tensor], selection: Trim | None, start: int, workspace: Workspace) -> None:
    """Set to +0, in place, the deltas of all elements whose squared deviations the selection doesn't keep.

    Shapes: deltas M x [n], the elements from `start` on, all within one block of hashes.
    """
    if selection is None:
        return
    deviations = squared_deviations(deltas, workspace)
    trim(deviations, selection, start, workspace)
    integers = BITS[deviations.dtype]
    kept = torch.ne(deviations, 0.0, out=workspace.take("selected", deviations.numel(), integers))
    for delta in deltas:
        # The bits times 1 or 0: NaN and Inf that aren't selected are gone.
        delta.view(integers).mul_(kept)


def squared_deviations(deltas: list[Tensor], workspace: Workspace) -> Tensor:
    """[n] Σ (δᵢ - mean)², which is M times the variance: the order of its elements is all that is used.

    Computed on the differences δᵢ - δ₀, so that it is zero where all deltas are equal. Their mean is their sum, in the
    order of the models, divided by M; every step is rounded to the compute dtype.
    """
    n, compute = deltas[0].numel(), deltas[0].dtype
    mean, term, total = (workspace.take(name, n, compute) for name in ("mean", "term", "deviations"))
    first = deltas[0]
    torch.sub(first, first, out=mean)
    for delta in deltas[1:]:
        mean.add_(torch.sub(delta, first, out=term))
    # By a tensor: division by a number is a multiplication by its reciprocal on some devices.
    mean.div_(workspace.take("count", 1, compute).fill_(len(deltas)))
    torch.mul(mean, mean, out=total)
    for delta in deltas[1:]:
        torch.sub(delta, first, out=term).sub_(mean)
        total.add_(term.mul_(term))
    return total


def selected(varying: int, share: float) -> int:
    """How many elements to select, of so many that vary: the product is truncated, as a float32."""
    return min(max(int(np.float32(varying) * np.float32(share)), 0), varying)


class Deviations:
    """The tiles of the squared deviations [n] of the deltas in `tiles`, with a base of zeros."""

    def __init__(self, tiles: Tiles, workspace: Workspace) -> None:
        self._tiles = tiles
        self._workspace = workspace

    def __iter__(self) -> Iterator[Tile]:
        for tile in self._tiles:
            for piece in tile.pieces(PIECE):
                _, deltas = load_deltas(piece, self._workspace)
                deviations = squared_deviations(deltas, self._workspace)
                zeros = self._workspace.take("no base", len(piece), piece.compute).zero_()
                yield Tile(piece.start, [deviations], zeros, piece.compute)
