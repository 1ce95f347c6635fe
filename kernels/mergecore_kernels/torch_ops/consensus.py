"""Combine masked deltas: sum them, or first elect a sign for each element and sum the deltas that have it."""

from __future__ import annotations

from struct import pack, unpack

import torch
from torch import Tensor

from mergecore_kernels.operations import Consensus, row_length, whole_rows
from mergecore_kernels.torch_ops.arithmetic import BITS, load, load_delta, rounded, store
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.tile import PIECE, Tile
from mergecore_kernels.torch_ops.workspace import Workspace

LEAST_TOTAL = 1e-8
"""Deltas are not divided by weights that add up to less than this."""


def consensus(tile: Tile, spec: Consensus, out: Tensor, workspace: Workspace) -> None:
    """[n] base + scale · combined deltas, each step rounded to the compute dtype.

    A delta is masked, then multiplied by weight · rescale (a product of Python floats, rounded once). Sums run over the
    models in order and start with the first one's term.

    With election, the sign of the sum is elected (plus where it is zero) and the weighted deltas of that sign are
    summed; `normalize` divides that by the sum of their weights (without rescale; by 1 where it is zero).
    Without, `normalize` divides the factors by Σ weights, before they are rounded.

    Zeros:  a weighted delta of zero has no sign, so it never agrees.
    NaN and Inf spread to the output, with bits and signs that depend on the device.
    """
    combine = _elected_sum if spec.elect else _sum
    for piece in tile.pieces(whole_rows(PIECE, row_length(spec))):
        assert piece.base is not None, "a consensus of deltas needs a base"
        base = load(piece.base, workspace.take("base", len(piece), piece.compute))
        combined = combine(piece, base, spec, workspace)
        if spec.scale != 1.0:
            combined.mul_(rounded(spec.scale, piece.compute))
        combined.add_(base)
        at = piece.start - tile.start
        store(combined, out[at : at + len(piece)])


def factors(spec: Consensus, dtype: torch.dtype) -> list[float]:
    """[M] what the masked deltas are multiplied by."""
    total_weight = sum(spec.weights)
    divides = spec.normalize and not spec.elect and abs(total_weight) >= LEAST_TOTAL
    divisor = total_weight if divides else 1.0
    return [rounded(w * rescale / divisor, dtype) for w, rescale in zip(spec.weights, spec.rescales, strict=True)]


def _sum(tile: Tile, base: Tensor, spec: Consensus, workspace: Workspace) -> Tensor:
    """[n] Σ of the weighted deltas."""
    total = workspace.take("total", len(tile), tile.compute)
    term = workspace.take("term", len(tile), tile.compute)
    for i in range(len(tile.inputs)):
        _weighted_delta(tile, i, base, spec, workspace, total if i == 0 else term)
        if i > 0:
            total.add_(term)
    return total


def _elected_sum(tile: Tile, base: Tensor, spec: Consensus, workspace: Workspace) -> Tensor:
    """[n] Σ of the weighted deltas that have the elected sign, over the sum of their weights if `normalize`.

    Works on bits: with the elected sign taken out (exclusive or), a delta agrees if its bits, read as an integer, are
    positive; clamping at 0 then turns all others into +0. Exact, symmetric in the sign, and free of boolean masks.
    """
    n, integers = len(tile), BITS[tile.compute]
    deltas = [workspace.take(f"delta {i}", n, tile.compute) for i in range(len(tile.inputs))]
    total = workspace.take("total", n, tile.compute)
    for i, delta in enumerate(deltas):
        _weighted_delta(tile, i, base, spec, workspace, delta)
        if i == 1:
            torch.add(deltas[0], delta, out=total)
        elif i > 1:
            total.add_(delta)
    sign = workspace.take("sign", n, integers)
    torch.bitwise_and((total if len(deltas) > 1 else deltas[0]).view(integers), torch.iinfo(integers).min, out=sign)
    for i, delta in enumerate(deltas):
        delta.view(integers).bitwise_xor_(sign).clamp_(min=0)
        if i == 1:
            torch.add(deltas[0], delta, out=total)
        elif i > 1:
            total.add_(delta)
    if len(deltas) == 1:
        total.copy_(deltas[0])
    if spec.normalize:
        total.div_(_agreeing_weights(deltas, spec.weights, workspace))
    total.view(integers).bitwise_xor_(sign)
    return total


def _agreeing_weights(deltas: list[Tensor], weights: tuple[float, ...], workspace: Workspace) -> Tensor:
    """[n] the sum of the weights of the models that agree, 1 where it is zero. Uses the deltas' memory.

    A delta's bits are positive where it agrees: clamped to 1 and multiplied by the bits of the weight, they are those
    of the weight or +0.
    """
    n, compute = deltas[0].numel(), deltas[0].dtype
    divisor = workspace.take("divisor", n, compute)
    rounded_weights = [rounded(weight, compute) for weight in weights]
    for i, (delta, weight) in enumerate(zip(deltas, rounded_weights, strict=True)):
        delta.view(BITS[compute]).clamp_(max=1).mul_(_bits(weight, compute))
        if i == 1:
            torch.add(deltas[0], delta, out=divisor)
        elif i > 1:
            divisor.add_(delta)
    if len(deltas) == 1:
        divisor.copy_(deltas[0])
    least = min(rounded_weights)
    if least > 0:
        # Only where no delta agrees is the sum below the smallest weight, and there any divisor gives zero.
        return divisor.clamp_(min=least)
    zero = torch.eq(divisor, 0.0, out=workspace.take("term", n, compute))
    return divisor.add_(zero)


def _weighted_delta(tile: Tile, i: int, base: Tensor, spec: Consensus, workspace: Workspace, out: Tensor) -> None:
    """[n] the delta of model i, masked and multiplied by its factor."""
    load_delta(tile.inputs[i], base, out)
    apply_mask(out, spec.masks[i], tile.start, workspace)
    factor = factors(spec, tile.compute)[i]
    if factor != 1.0:
        out.mul_(factor)


def _bits(value: float, dtype: torch.dtype) -> int:
    """The bits of a float32 or float64, as a signed integer."""
    code: int
    (code,) = unpack("<i", pack("<f", value)) if dtype == torch.float32 else unpack("<q", pack("<d", value))
    return code
