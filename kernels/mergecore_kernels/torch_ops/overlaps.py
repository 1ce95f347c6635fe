"""Where the deltas of several models overlap: how many of them do, and the mean of those that are there.

A delta is active where its magnitude is above a threshold. An active element is unique if no other model's delta is
active there, and shared if one is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import OverlapCounts, OverlapMean
from mergecore_kernels.torch_ops.arithmetic import rounded, store
from mergecore_kernels.torch_ops.deltas import load_deltas
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace


def overlap_counts(tiles: Tiles, spec: OverlapCounts, workspace: Workspace) -> list[tuple[int, int]]:
    """[M] (shared, unique) elements of each delta, exact. NaN is never active, Inf always."""
    counts: list[tuple[int, int]] = []
    for tile in tiles:
        counts = counts or [(0, 0)] * len(tile.inputs)
        for piece in tile.pieces(PIECE):
            found = _counts(piece, spec.threshold, workspace)
            counts = [(s + shared, u + unique) for (s, u), (shared, unique) in zip(counts, found, strict=True)]
    return counts


def overlap_mean(tile: Tile, spec: OverlapMean, out: Tensor, workspace: Workspace) -> None:
    """[n] base + Σ active δᵢ / their number; an element that one model alone has is multiplied by that model's scale
    instead.

    Each step is rounded to the compute dtype. Sums run over the models in order and start with the first one's term;
    what is not active is multiplied by 0, so that NaN spreads to the output.
    """
    scales = [rounded(scale, tile.compute) for scale in spec.scales]
    for piece in tile.pieces(PIECE):
        base, deltas = load_deltas(piece, workspace)
        combined = _mean(deltas, rounded(spec.threshold, piece.compute), scales, workspace)
        at = piece.start - tile.start
        store(combined.add_(base), out[at : at + len(piece)])


def _mean(deltas: list[Tensor], threshold: float, scales: list[float], workspace: Workspace) -> Tensor:
    n, compute = deltas[0].numel(), deltas[0].dtype
    total, count, unique, active, term = (
        workspace.take(name, n, compute) for name in ("total", "count", "unique", "active", "term")
    )
    scaled = set(scales) != {1.0}
    for i, (delta, scale) in enumerate(zip(deltas, scales, strict=True)):
        torch.gt(torch.abs(delta, out=term), threshold, out=active)
        delta.mul_(active)
        if i == 0:
            total.copy_(delta)
            count.copy_(active)
        else:
            total.add_(delta)
            count.add_(active)
        if scaled:
            torch.mul(delta, scale, out=term if i else unique)
        if scaled and i:
            unique.add_(term)
    torch.div(total, torch.clamp(count, min=1.0, out=term), out=total)
    return torch.where(count == 1.0, unique, total, out=total) if scaled else total


def _counts(tile: Tile, threshold: float, workspace: Workspace) -> list[tuple[int, int]]:
    """[M] (shared, unique). Sums of fewer than 2²⁴ zeros and ones are exact in float32, in any order."""
    _, deltas = load_deltas(tile, workspace)
    count = workspace.take("count", len(tile), tile.compute).zero_()
    for delta in deltas:
        # In place: from here on a delta is 1 where it is active, else 0.
        count.add_(torch.gt(delta.abs_(), rounded(threshold, tile.compute), out=delta))
    single = torch.eq(count, 1.0, out=count)
    found = []
    for active in deltas:
        every = int(active.sum())
        unique = int(active.mul_(single).sum())
        found.append((every - unique, unique))
    return found
