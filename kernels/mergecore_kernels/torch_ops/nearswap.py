"""Move to the other model where it is near the base: nearswap."""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import NearSwap
from mergecore_kernels.torch_ops.arithmetic import load, rounded, store
from mergecore_kernels.torch_ops.tile import PIECE, Tile
from mergecore_kernels.torch_ops.workspace import Workspace

LEAST_DISTANCE = 1e-6
"""Nothing is divided by less."""


def nearswap(tile: Tile, spec: NearSwap, out: Tensor, workspace: Workspace) -> None:
    """[n] α·x + (1 - α)·base with α = t / max(|base - x|, 1e-6), cut to [0, 1]; each step is rounded.

    Within t of the base that is x. NaN and Inf of either input give NaN or Inf.
    """
    for piece in tile.pieces(PIECE):
        (x,), n = piece.inputs, len(piece)
        assert piece.base is not None, "nearswap needs a base"
        base = load(piece.base, workspace.take("base", n, piece.compute))
        x = load(x, workspace.take("input 0", n, piece.compute))
        share = torch.sub(base, x, out=workspace.take("share", n, piece.compute))
        share.abs_().clamp_(min=rounded(LEAST_DISTANCE, piece.compute))
        # Filled and divided: a number divided by a tensor may be multiplied by its reciprocal instead.
        total = workspace.take("total", n, piece.compute).fill_(rounded(max(0.0, spec.t), piece.compute))
        torch.div(total, share, out=share).clamp_(max=1.0)
        torch.mul(share, x, out=total)
        rest = share.neg_().add_(1.0).mul_(base)
        at = piece.start - tile.start
        store(total.add_(rest), out[at : at + n])
