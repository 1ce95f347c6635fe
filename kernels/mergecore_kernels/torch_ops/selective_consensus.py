"""Average the selected deltas that have the elected sign: SCE's combination.

Source: Wan et al. 2024, arXiv:2408.07990, the step "erase".
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import SelectiveConsensus
from mergecore_kernels.torch_ops.arithmetic import BITS, rounded, store
from mergecore_kernels.torch_ops.deltas import load_deltas
from mergecore_kernels.torch_ops.tile import PIECE, Tile
from mergecore_kernels.torch_ops.variances import select
from mergecore_kernels.torch_ops.workspace import Workspace

LEAST_TOTAL = 1e-6
"""Nothing is divided by less."""


def selective_consensus(tile: Tile, spec: SelectiveConsensus, out: Tensor, workspace: Workspace) -> None:
    """[n] base + Σ eᵢ δᵢ / max(Σ eᵢ, 1e-6), eᵢ the model's weight where its delta agrees, else 0.

    The sign of Σ δᵢ is elected (plus where it is zero). Each step is rounded to the compute dtype, sums run over the
    models in order and start with the first one's term.

    Zeros:  a delta of zero, or one that isn't selected, has no sign, so it never agrees.
    NaN and Inf that are selected give NaN or Inf.
    """
    weights = [rounded(weight, tile.compute) for weight in spec.weights]
    for piece in tile.pieces(PIECE):
        base, deltas = load_deltas(piece, workspace)
        select(deltas, spec.selection, piece.start, workspace)
        combined = _elected_mean(deltas, weights, workspace)
        at = piece.start - tile.start
        store(combined.add_(base), out[at : at + len(piece)])


def _elected_mean(deltas: list[Tensor], weights: list[float], workspace: Workspace) -> Tensor:
    n, compute = deltas[0].numel(), deltas[0].dtype
    integers = BITS[compute]
    total, term, divisor = (workspace.take(name, n, compute) for name in ("total", "term", "divisor"))
    total.copy_(deltas[0])
    for delta in deltas[1:]:
        total.add_(delta)
    sign = workspace.take("sign", n, integers)
    torch.bitwise_and(total.view(integers), torch.iinfo(integers).min, out=sign)
    for i, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        # With the elected sign taken out, what agrees is positive.
        torch.bitwise_xor(delta.view(integers), sign, out=term.view(integers))
        torch.gt(term, 0.0, out=term).mul_(weight)
        delta.mul_(term)
        if i:
            divisor.add_(term)
            total.add_(delta)
        else:
            divisor.copy_(term)
            total.copy_(delta)
    return total.div_(divisor.clamp_(min=rounded(LEAST_TOTAL, compute)))
