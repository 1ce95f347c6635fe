"""How important each delta is to the distribution of its row, and the choice of the important ones: arcee_fusion.

The importance of an element is |δ| times the divergence of its row, KL(softmax(x) ‖ softmax(base)); a row is a run
along the last axis. The terms of a divergence nearly cancel, so it is computed in float64 and rounded once, with an
exponential and a logarithm that have the same bits everywhere (`exponential`).

Run on a GPU it is bound by float64 arithmetic, some hundred operations per element, and by the float64 temporaries of
each of them; a kernel that holds a row in registers would be several times faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from mergecore_kernels.operations import ImportanceQuantiles, Key, KthMagnitudes, TakeImportant
from mergecore_kernels.torch_ops.arithmetic import store
from mergecore_kernels.torch_ops.exponential import exp, log
from mergecore_kernels.torch_ops.order_statistics import kth_magnitudes
from mergecore_kernels.torch_ops.reduction_tree import adjacent_pair_tree
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

_LEAST = 1e-8
"""Added to each probability."""


def importance_quantiles(tiles: Tiles, spec: ImportanceQuantiles, workspace: Workspace) -> tuple[float, ...]:
    """For each fraction f of N elements, the importance at place trunc(f · (N - 1)) of all in rising order.

    Shapes: tiles of one input and its base, whole rows.
    """
    importances = _Importances(tiles, spec.columns, len(spec.fractions))
    n = sum(len(tile) for tile in tiles)
    kept = tuple(n - int(fraction * (n - 1)) for fraction in spec.fractions)
    # The hash decides among equals, but only the magnitude is looked at: any key will do.
    trims = kth_magnitudes(importances, KthMagnitudes(kept, (Key(""),) * len(kept)), workspace)
    return tuple(importances.least if trim is None else trim.magnitude for trim in trims)


def take_important(tile: Tile, spec: TakeImportant, out: Tensor, workspace: Workspace) -> None:
    """[n] the input where its importance is at least the threshold, else the base."""
    (x,) = tile.inputs
    assert tile.base is not None, "importance needs a base"
    important = importance(x, tile.base, spec.columns) >= spec.threshold
    store(torch.where(important, x.to(tile.compute), tile.base.to(tile.compute)), out)


def importance(x: Tensor, base: Tensor, columns: int) -> Tensor:
    """float32 [n] |x - base| · divergence of the row. Shapes: x and base [n], whole rows of `columns` elements."""
    assert x.numel() % columns == 0, "rows must be whole"
    result = torch.empty(x.numel(), dtype=torch.float32, device=x.device)
    step = columns * max(PIECE // columns, 1)
    for at in range(0, x.numel(), step):
        part = slice(at, at + step)
        divergence = _divergence(_probabilities(x[part], columns), _probabilities(base[part], columns))
        delta = x[part].to(torch.float32) - base[part].to(torch.float32)
        result[part] = (delta.abs_().view(-1, columns) * divergence.to(torch.float32)[:, None]).view(-1)
    return result


def _probabilities(x: Tensor, columns: int) -> Tensor:
    """float64 [R, C] softmax of each row, plus a little."""
    rows = x.to(torch.float64).view(-1, columns)
    powers = exp(rows - rows.amax(1, keepdim=True))
    return powers.div_(_row_sums(powers)[:, None]).add_(_LEAST)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """float64 [R] Σ p · ln(p / q), which is never negative."""
    return _row_sums(log(p / q).mul_(p)).clamp_(min=0.0)


def _row_sums(values: Tensor) -> Tensor:
    """[R, C] -> [R], neighbours added until one is left."""
    columns = values.shape[1]
    return adjacent_pair_tree(pad(values, (0, (1 << (columns - 1).bit_length()) - columns)))


class _Importances:
    """Tiles of importances: `count` equal inputs, and zeros as their base."""

    def __init__(self, tiles: Tiles, columns: int, count: int) -> None:
        self.least = float("inf")
        self._tiles, self._columns, self._count = tiles, columns, count

    def __iter__(self) -> Iterator[Tile]:
        for tile in self._tiles:
            assert tile.base is not None, "importance needs a base"
            values = importance(tile.inputs[0], tile.base, self._columns)
            if len(tile):
                self.least = min(self.least, float(values.min()))
            yield Tile(tile.start, [values] * self._count, torch.zeros_like(values), torch.float32)
