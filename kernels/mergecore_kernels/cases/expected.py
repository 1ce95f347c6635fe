"""The output tensors of the operations in float64, and how far float32 arithmetic may be from them.

Only the counter hash is shared with the backends; it has tests of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.cases.data import Data
from mergecore_kernels.operations import (
    HASH_RANGE,
    Consensus,
    Copy,
    Drop,
    Key,
    Mask,
    NearSwap,
    OverlapMean,
    RankedDrop,
    SelectiveConsensus,
    TakeImportant,
    Trim,
    WeightedColumns,
    WeightedRows,
    WeightedSum,
)  # fmt: skip
from mergecore_kernels.torch_ops.counter_hash import hash_offsets

EPSILON = {torch.float32: 2.0**-24, torch.float64: 2.0**-52}
"""Relative error of one rounding in a compute dtype; twice as large in float64, as the expected result has it too."""
Combined = tuple[Tensor, Tensor]
"""[n] the merged deltas or inputs, and the size of what was added up: infinite where an election is too close."""


def expected(window: Data) -> tuple[Tensor, Tensor]:
    """[n] the result in float64, and a bound of the error that float32 arithmetic makes before the last rounding."""
    spec = window.spec
    deltas = exact_deltas(window)
    if isinstance(spec, Copy):
        return deltas[0], torch.zeros_like(deltas[0])
    if isinstance(spec, WeightedSum):
        merged, size = _weighted_sum(_column(spec.weights), deltas)
    elif isinstance(spec, (WeightedRows, WeightedColumns)):
        merged, size = _weighted_sum(_weights_of_elements(spec, window), deltas)
    elif isinstance(spec, Consensus):
        merged, size = _consensus(spec, deltas, window)
    elif isinstance(spec, SelectiveConsensus):
        merged, size = _selective_consensus(spec, deltas, window)
    elif isinstance(spec, OverlapMean):
        merged, size = _overlap_mean(spec, deltas)
    elif isinstance(spec, TakeImportant):
        merged, size = _take_important(spec, window, deltas[0])
    else:
        assert isinstance(spec, NearSwap)
        merged, size = _nearswap(spec, window, deltas[0])
    if window.base is not None:
        merged = merged + window.base.double()
    # A term has three roundings (difference, weight, product), a sum one per model, the mean and the base one each.
    return merged, (len(deltas) + 5) * EPSILON[window.compute] * (size + merged.abs())


def exact_deltas(data: Data) -> list[Tensor]:
    """M x [n] inputs or deltas, the differences rounded to the compute dtype as the definition says, as float64."""
    if data.base is None:
        return [x.double() for x in data.inputs]
    base = data.base.to(data.compute)
    return [(x.to(data.compute) - base).double() for x in data.inputs]


def kept(mask: Mask, delta: Tensor, start: int) -> Tensor:
    """[n] which elements of a delta the mask keeps."""
    if mask is None:
        return torch.ones_like(delta, dtype=torch.bool)
    hashes = _hashes(mask.key, start, delta)
    if isinstance(mask, Drop):
        return hashes < mask.threshold
    if isinstance(mask, RankedDrop):
        return hashes < (_keep_probability(mask, delta) * HASH_RANGE).round()
    size = delta.abs().float()
    inner = (size > mask.magnitude) | ((size == mask.magnitude) & (hashes <= mask.hash_cut))
    outliers = (size > mask.upper) | ((size == mask.upper) & (hashes <= mask.upper_cut))
    return inner & ~outliers


def selected(selection: Trim | None, deltas: list[Tensor], start: int, compute: torch.dtype) -> Tensor:
    """[n] which elements vary enough."""
    return kept(selection, squared_deviations(deltas, compute), start)


def squared_deviations(deltas: list[Tensor], compute: torch.dtype) -> Tensor:
    """[n] of the deltas from their mean, rounded step by step to the compute dtype, as each rounding may decide."""
    values = [delta.to(compute) - deltas[0].to(compute) for delta in deltas]
    total = values[0].clone()
    for value in values[1:]:
        total += value
    mean = total / torch.full_like(total, len(values))
    deviations = torch.zeros_like(total)
    for value in values:
        deviations += (value - mean) * (value - mean)
    return deviations.double()


def _keep_probability(mask: RankedDrop, delta: Tensor) -> Tensor:
    """[n] by the mean rank, from 0 on, that the equals of each element have in its row."""
    size = delta.abs().float().view(-1, mask.columns)
    ordered = size.sort(dim=1).values
    first, after = (torch.searchsorted(ordered, size, right=right) for right in (False, True))
    place = (first + after - 1) / 2 / max(mask.columns - 1, 1)
    spread = mask.epsilon if mask.columns > 1 else 0.0
    return (mask.density - spread + 2 * spread * place.double()).flatten()


def _weights_of_elements(spec: WeightedRows | WeightedColumns, window: Data) -> Tensor:
    """[M, n]"""
    elements = np.arange(window.start, window.start + window.n)
    place = elements // spec.columns if isinstance(spec, WeightedRows) else elements % spec.columns
    return torch.from_numpy(np.stack(spec.weights)[:, place])


def _take_important(spec: TakeImportant, window: Data, delta: Tensor) -> Combined:
    """An importance so near the threshold that rounding decides has no expected result."""
    rows = np.arange(window.start, window.start + window.n) // spec.columns
    importance = delta.abs() * torch.from_numpy(spec.divergences[rows].astype(np.float64))
    close = (importance - spec.threshold).abs() <= 2 * EPSILON[torch.float32] * spec.threshold
    return delta * (importance >= spec.threshold), delta.abs().masked_fill(close, torch.inf)


def _weighted_sum(weights: Tensor, deltas: list[Tensor]) -> Combined:
    """Weights [M, 1 or n]"""
    terms = torch.stack(deltas) * weights
    return terms.sum(dim=0), terms.abs().sum(dim=0)


def _consensus(spec: Consensus, deltas: list[Tensor], window: Data) -> Combined:
    masks = torch.stack([kept(mask, delta, window.start) for mask, delta in zip(spec.masks, deltas, strict=True)])
    weights = _column(spec.weights)
    terms = torch.stack(deltas) * masks * weights * _column(spec.rescales)
    if not spec.elect:
        return terms.sum(dim=0), terms.abs().sum(dim=0)
    return _elected(terms, terms, weights if spec.normalize else None, EPSILON[window.compute])


def _selective_consensus(spec: SelectiveConsensus, deltas: list[Tensor], window: Data) -> Combined:
    chosen = torch.stack(deltas) * selected(spec.selection, deltas, window.start, window.compute)
    weights = _column(spec.weights)
    return _elected(chosen, chosen * weights, weights, EPSILON[window.compute])


def _elected(votes: Tensor, terms: Tensor, weights: Tensor | None, epsilon: float) -> Combined:
    """[n] Σ of the terms whose vote has the sign of all votes' sum, over the sum of their weights if there are any."""
    total, size = votes.sum(dim=0), votes.abs().sum(dim=0)
    agree = torch.where(total >= 0, votes > 0, votes < 0)
    close = (total.abs() <= (len(votes) + 3) * epsilon * size) & (size > 0)
    merged, size = (terms * agree).sum(dim=0), terms.abs().sum(dim=0)
    if weights is not None:
        divisor = (weights * agree).sum(dim=0).masked_fill(~agree.any(dim=0), 1.0)
        merged, size = merged / divisor, size / divisor
    return merged, size.masked_fill(close, torch.inf)


def _overlap_mean(spec: OverlapMean, deltas: list[Tensor]) -> Combined:
    terms = torch.stack(deltas)
    active = terms.abs() > spec.threshold
    terms = terms * active
    count = active.sum(dim=0)
    alone = (terms * _column(spec.scales)).sum(dim=0)
    merged = torch.where(count == 1, alone, terms.sum(dim=0) / count.clamp(min=1))
    return merged, max(spec.scales) * terms.abs().sum(dim=0)


def _nearswap(spec: NearSwap, window: Data, delta: Tensor) -> Combined:
    assert window.base is not None
    share = (spec.t / delta.abs().clamp(min=1e-6)).clamp(max=1.0)
    return share * delta, window.inputs[0].double().abs() + window.base.double().abs()


def _hashes(key: Key, start: int, like: Tensor) -> Tensor:
    hashes = hash_offsets(key, start, np.arange(like.numel()))
    return torch.from_numpy(hashes.astype(np.int64)).to(like.device)


def _column(values: tuple[float, ...]) -> Tensor:
    """[M, 1]"""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)
