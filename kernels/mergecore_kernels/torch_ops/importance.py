"""How important each delta is to the distribution of its row, and the choice of the important ones: arcee_fusion.

The importance of an element is |δ| times the divergence of its row, KL(p ‖ q) with p = softmax(x) + ε and
q = softmax(base) + ε; a row is a run along the last axis. Summed as p · ln(p / q), the terms nearly cancel: of a light
fine-tune is left what is in the last bits. So it is summed as q · f(p / q - 1) with f(r) = (1 + r) · ln(1 + r) - r,
which is the same, as Σ p = Σ q, and has no negative terms. And p - q comes from e^δ - 1, not from the difference of two
powers. That leaves float32 precise to some 10⁻⁷, for rows of any length.

With weights w = e^(base - max base), growths g = w · (e^(δ - c) - 1) where c = max x - max base, and the sums of both,
W and G:

    a = (g - w · G/W) · W/(W + G)      W · (p - q)
    b = w + ε · W                      W · q
    s = a / (2b + a)                   (p - q) / (p + q), so that ln(p / q) = 2 · (s + s³/3 + s⁵/5 + …)
    KL = Σ a · s · (1 + (1 + s) · s · (1/3 + s²/5 + s⁴/7 + …)) / W

where |s| is large, a term is (a + b) · ln((a + b) / b) - a.

Sums over a row: column j goes to lane j mod LANES, each lane adds its columns in order in float32, and a tree of
adjacent pairs adds the lanes in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import ImportanceQuantiles, Key, KthMagnitudes, TakeImportant
from mergecore_kernels.torch_ops.arithmetic import load, rounded, store
from mergecore_kernels.torch_ops.exponential import exp, exp_minus_1, log, polynomial
from mergecore_kernels.torch_ops.order_statistics import kth_magnitudes
from mergecore_kernels.torch_ops.rectangles import rectangles
from mergecore_kernels.torch_ops.reduction_tree import adjacent_pair_tree
from mergecore_kernels.torch_ops.row_tiles import row_tiles
from mergecore_kernels.torch_ops.tile import PIECE, Tile, Tiles
from mergecore_kernels.torch_ops.workspace import Workspace

LANES = 512
EPSILON = 1e-8
"""ε, added to each probability."""
LOWEST = -40.0
"""The least exponent: e^-40 is nothing beside ε."""
SMALL = 0.2
"""|s| up to which the series is summed: where p / q is between 2/3 and 3/2."""
SERIES = tuple(1 / n for n in range(11, 1, -2))
"""1/3 + s²/5 + …, the last one first. The next term is below 2⁻²⁶."""
MOST = torch.finfo(torch.float32).max
"""What NaN and Inf count as among the importances."""
LEAST_RATIO = 2.0**-26
"""What p / q is at least: smaller ones are lost in rounding."""


def importance_quantiles(
    tiles: Tiles, spec: ImportanceQuantiles, workspace: Workspace
) -> tuple[tuple[float, ...], NDArray[np.float32]]:
    """(for each fraction f of N elements, the importance at place trunc(f · (N - 1)) of all in rising order;
    the divergences [R])
    """
    derived = _Importances(tiles, spec, workspace)
    # The hash decides among equals, but only the magnitude is looked at: any key will do.
    trims = kth_magnitudes(derived, KthMagnitudes(spec.kept, (Key(""),) * len(spec.kept)), workspace)
    quantiles = tuple(derived.least if trim is None else trim.magnitude for trim in trims)
    return quantiles, derived.divergences()


def take_important(tile: Tile, spec: TakeImportant, out: Tensor, workspace: Workspace) -> None:
    """[n] the input where its importance is at least the threshold, else the base."""
    threshold = rounded(spec.threshold, torch.float32)
    for piece in tile.pieces(PIECE):
        first = piece.start - tile.start
        for part in rectangles(piece.start, len(piece), spec.columns):
            of_rows = spec.divergences[part.row : part.row + part.rows]
            divergence = torch.from_numpy(of_rows).to(workspace.device)
            x, base = _loaded(piece.part(part.at, part.end), workspace)
            importance = workspace.take("importance", len(x), torch.float32)
            important = importances(x, base, divergence, part.width, importance) >= threshold
            store(torch.where(important, x, base), out[first + part.at : first + part.end])


def importances(x: Tensor, base: Tensor, divergence: Tensor, width: int, out: Tensor) -> Tensor:
    """float32 [R · width] out = |x - base| · divergence [R]. Inputs in their compute dtype."""
    if x.dtype == torch.float32:
        torch.sub(x, base, out=out)
    else:
        out.copy_(x - base)
    out.abs_().view(-1, width).mul_(divergence[:, None])
    return out


def divergences(tile: Tile, columns: int, workspace: Workspace) -> Tensor:
    """float32 [R] of a tile of whole rows. NaN where a row has a NaN, or an infinite maximum."""
    assert len(tile) % columns == 0, "rows must be whole"
    result = torch.empty(len(tile) // columns, dtype=torch.float32, device=workspace.device)
    for rows, part in _parts(tile, columns):
        x, base = _loaded(part, workspace)
        result[rows] = _divergences(x, base, columns, workspace)
    return result


def _parts(tile: Tile, columns: int) -> Iterator[tuple[slice, Tile]]:
    """(rows, the tile of these): so many that their buffers stay in the cache, but at least one."""
    step = max(PIECE // columns, 1)
    for row in range(0, len(tile) // columns, step):
        yield slice(row, row + step), tile.part(row * columns, min((row + step) * columns, len(tile)))


def _loaded(tile: Tile, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """[n] the input and the base, in the compute dtype."""
    assert tile.base is not None, "importance needs a base"
    x = load(tile.inputs[0], workspace.take("row x", len(tile), tile.compute))
    return x, load(tile.base, workspace.take("row base", len(tile), tile.compute))


def _divergences(x: Tensor, base: Tensor, columns: int, workspace: Workspace) -> Tensor:
    """float32 [R]"""
    n = x.numel()
    shift, weight, growth, scratch, spare = (
        workspace.take(f"row {name}", n, torch.float32).view(-1, columns)
        for name in ("shift", "weight", "growth", "scratch", "spare")
    )
    _exponents(x.view(-1, columns), base.view(-1, columns), shift, spare)
    exp(spare, out=weight, scratch=scratch)
    exp_minus_1(shift, out=growth, scratch=scratch).mul_(weight)
    weights, growths = _row_sums(weight), _row_sums(growth)

    # From here on `growth` is a, `weight` is b.
    torch.mul(weight, _column(growths / weights), out=scratch)
    growth.sub_(scratch).mul_(_column(weights / (weights + growths)))
    weight.add_(_column(weights * EPSILON))
    return (_row_sums(_terms(growth, weight, shift, scratch, spare)) / weights).to(torch.float32)


def _exponents(x: Tensor, base: Tensor, shift: Tensor, exponent: Tensor) -> None:
    """[R, C] exponent = base - max base, and shift = δ less the difference of the maxima, the exponent's change."""
    difference = torch.sub(x, base) if x.dtype == torch.float64 else torch.sub(x, base, out=shift)
    x, base = x.to(torch.float32), base.to(torch.float32)
    most, base_most = x.amax(1, keepdim=True), base.amax(1, keepdim=True)
    torch.sub(difference.to(torch.float32), most - base_most, out=shift)
    torch.sub(base, base_most, out=exponent)
    changes = torch.aminmax(shift)
    if exponent.min() >= LOWEST and changes.min >= LOWEST and changes.max <= -LOWEST:
        return
    far = ~((exponent >= LOWEST) & (shift.abs() <= -LOWEST))  # so if it is NaN
    exponent.clamp_(min=LOWEST)
    shift.copy_(torch.where(far, (x - most).clamp_(min=LOWEST) - exponent, shift))


def _terms(a: Tensor, b: Tensor, square: Tensor, s: Tensor, out: Tensor) -> Tensor:
    """[R, C] out = W times the terms of KL. `square` and `s` are scratch."""
    torch.add(b, b, out=s).add_(a)
    torch.div(a, s, out=s)
    polynomial(torch.mul(s, s, out=square), SERIES, out).mul_(s)
    out.add_(torch.mul(out, s, out=square)).add_(1.0).mul_(s).mul_(a)
    least, most = torch.aminmax(s)
    if not (least >= -SMALL and most <= SMALL):  # so if there is a NaN
        ratio = ((a + b) / b).clamp_(min=LEAST_RATIO)
        out.copy_(torch.where(s.abs() > SMALL, (a + b) * log(ratio) - a, out))
    return out


def _row_sums(values: Tensor) -> Tensor:
    """float32 [R, C] -> float64 [R]"""
    rows, columns = values.shape
    lanes = min(LANES, 1 << (columns - 1).bit_length())
    whole = columns // lanes * lanes
    steps = torch.split(values[:, :whole], lanes, 1) if whole else ()
    total = steps[0].clone() if steps else values.new_zeros(rows, lanes)
    for step in steps[1:]:
        total.add_(step)
    if whole < columns:
        total[:, : columns - whole] += values[:, whole:]
    return adjacent_pair_tree(total.to(torch.float64))


def _column(values: Tensor) -> Tensor:
    """float64 [R] -> float32 [R, 1]"""
    return values.to(torch.float32)[:, None]


def least(importances: Tensor) -> Tensor:
    """[] the least one. NaN counts as the largest."""
    return importances.nan_to_num(nan=MOST).min()


class _Importances:
    """Tiles of importances, whole rows, with zeros as their base. The divergences are kept from the first pass on."""

    def __init__(self, tiles: Tiles, spec: ImportanceQuantiles, workspace: Workspace) -> None:
        self.least = MOST
        self._tiles, self._columns, self._workspace = tiles, spec.columns, workspace
        self._wants_least = spec.wants_least
        self._divergences: list[Tensor] = []  # [rows of the tile], tile by tile

    def __iter__(self) -> Iterator[Tile]:
        for number, tile in enumerate(row_tiles(self._tiles, self._columns)):
            is_new = number == len(self._divergences)
            if is_new:
                self._divergences.append(divergences(tile, self._columns, self._workspace))
            values = self._workspace.take("importance", len(tile), torch.float32)
            for rows, part in _parts(tile, self._columns):
                x, base = _loaded(part, self._workspace)
                at = part.start - tile.start
                importances(x, base, self._divergences[number][rows], self._columns, values[at : at + len(part)])
            if is_new and self._wants_least and len(tile):
                self.least = min(self.least, float(least(values)))
            yield Tile(tile.start, [values], values.new_zeros(1).expand(len(tile)), torch.float32)

    def divergences(self) -> NDArray[np.float32]:
        """[R]"""
        found: NDArray[np.float32] = torch.cat([torch.empty(0), *self._divergences]).cpu().numpy()
        return found
