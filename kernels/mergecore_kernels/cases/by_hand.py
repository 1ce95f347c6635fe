"""Each operation as one would write it by hand in torch: the baseline of the benchmarks.

Whole tensors in the compute dtype, one torch call per step, random numbers from torch's generator. So the masks of a
drop are not those of the case, and an equal magnitude is always kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergecore_kernels.cases.data import Data
from mergecore_kernels.operations import (
    MAGNITUDE_LOW_BITS,
    Consensus,
    Drop,
    Energies,
    GramColumns,
    GramRows,
    ImportanceQuantiles,
    KthMagnitudes,
    LargestVariances,
    MagnitudeCounts,
    MagnitudeSums,
    Mask,
    NearSwap,
    OverlapCounts,
    OverlapMean,
    RankedDrop,
    SelectiveConsensus,
    TakeImportant,
    Trim,
    WeightedColumns,
    WeightedRows,
    WeightedSum,
)  # fmt: skip


def _copy(data: Data) -> Tensor:
    return data.inputs[0].to(data.out_dtype, copy=True)


def _count_nonfinite(data: Data) -> int:
    (x,) = data.inputs
    return int((~torch.isfinite(x if x.itemsize > 1 else x.float())).sum())


def _weighted_sum(data: Data) -> Tensor:
    assert isinstance(data.spec, WeightedSum)
    merged = (
        torch.zeros(data.n, dtype=data.compute, device=data.device) if data.base is None else data.base.to(data.compute)
    )
    for weight, value in zip(data.spec.weights, _values(data), strict=True):
        merged = merged + weight * value
    return merged.to(data.out_dtype)


def _weighted_vectors(data: Data) -> Tensor:
    assert isinstance(data.spec, (WeightedRows, WeightedColumns))
    assert data.base is not None
    base = data.base.to(data.compute)
    merged = torch.zeros_like(base)
    for vector, value in zip(data.spec.weights, _values(data), strict=True):
        weight = torch.from_numpy(vector).to(data.device, data.compute)
        of_rows = weight[:, None] if isinstance(data.spec, WeightedRows) else weight
        merged = merged + (of_rows * value.view(-1, data.spec.columns)).flatten()
    return (base + merged).to(data.out_dtype)


def _gram(data: Data) -> Tensor:
    values = torch.stack(_values(data))
    return values @ values.T


def _gram_vectors(data: Data) -> Tensor:
    """[M, M, R or C]"""
    assert isinstance(data.spec, (GramRows, GramColumns))
    values = torch.stack(_values(data)).view(len(data.inputs), -1, data.spec.columns)
    return torch.einsum("irc,jrc->ijr" if isinstance(data.spec, GramRows) else "irc,jrc->ijc", values, values)


def _kth_magnitudes(data: Data) -> list[float]:
    assert isinstance(data.spec, KthMagnitudes)
    pairs = zip(_values(data), data.spec.kept, strict=True)
    return [float(delta.abs().kthvalue(data.n - k + 1).values) for delta, k in pairs]


def _magnitude_counts(data: Data) -> list[Tensor]:
    """Of all bits, also those that don't occur."""
    assert isinstance(data.spec, MagnitudeCounts)
    counts = []
    for delta, first_bits in zip(_values(data), data.spec.first_bits, strict=True):
        bits = delta.float().abs().view(torch.int32)
        first, low = bits >> MAGNITUDE_LOW_BITS, bits & ((1 << MAGNITUDE_LOW_BITS) - 1)
        counts.append(torch.bincount(first if first_bits is None else low[first == first_bits]))
    return counts


def _magnitude_sums(data: Data) -> list[tuple[float, float]]:
    assert isinstance(data.spec, MagnitudeSums)
    pairs = zip(_values(data), data.spec.masks, strict=True)
    return [(float(delta.abs().sum()), float(_masked(delta, mask).abs().sum())) for delta, mask in pairs]


def _consensus(data: Data) -> Tensor:
    assert isinstance(data.spec, Consensus)
    assert data.base is not None
    masked = [_masked(delta, mask) for delta, mask in zip(_values(data), data.spec.masks, strict=True)]
    weights = torch.tensor(data.spec.weights, device=data.device).unsqueeze(1)  # [M, 1]
    rescales = torch.tensor(data.spec.rescales, device=data.device).unsqueeze(1)
    deltas = torch.stack(masked) * rescales * weights
    if data.spec.elect:
        elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
        agree = deltas.sign() == elected
        deltas = deltas * agree
        divisor = (weights * agree).sum(dim=0)
        divisor[divisor == 0] = 1.0
    merged = deltas.sum(dim=0)
    if data.spec.elect and data.spec.normalize:
        merged = merged / divisor
    return (data.base.to(data.compute) + merged).to(data.out_dtype)


def _largest_variances(data: Data) -> float:
    """Without regard to the elements that don't vary."""
    assert isinstance(data.spec, LargestVariances)
    deviations = torch.stack(_values(data)).var(dim=0, correction=0) * len(data.inputs)
    return float(deviations.kthvalue(data.n - int(data.n * data.spec.share) + 1).values)


def _energies(data: Data) -> list[float]:
    assert isinstance(data.spec, Energies)
    return [float(energy) for energy in _selected(data, data.spec.selection).square().sum(dim=1)]


def _overlap_counts(data: Data) -> list[tuple[int, int]]:
    assert isinstance(data.spec, OverlapCounts)
    active = torch.stack(_values(data)).abs() > data.spec.threshold
    alone = active.sum(dim=0) == 1
    return [(int((a & ~alone).sum()), int((a & alone).sum())) for a in active]


def _selective_consensus(data: Data) -> Tensor:
    assert isinstance(data.spec, SelectiveConsensus)
    assert data.base is not None
    deltas = _selected(data, data.spec.selection)
    agree = deltas.sign() == torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    weights = torch.tensor(data.spec.weights, device=data.device).unsqueeze(1) * agree
    merged = (deltas * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-6)
    return (data.base.to(data.compute) + merged).to(data.out_dtype)


def _overlap_mean(data: Data) -> Tensor:
    assert isinstance(data.spec, OverlapMean)
    assert data.base is not None
    deltas = torch.stack(_values(data))
    active = deltas.abs() > data.spec.threshold
    deltas = deltas * active
    count = active.sum(dim=0)
    alone = (deltas * torch.tensor(data.spec.scales, device=data.device).unsqueeze(1)).sum(dim=0)
    merged = torch.where(count == 1, alone, deltas.sum(dim=0) / count.clamp(min=1))
    return (data.base.to(data.compute) + merged).to(data.out_dtype)


def _importance_quantiles(data: Data) -> list[float]:
    """In float64: the divergence of nearly equal distributions is lost in float32."""
    assert isinstance(data.spec, ImportanceQuantiles)
    assert data.base is not None
    x, base = (values.double().view(-1, data.spec.columns) for values in (data.inputs[0], data.base))
    p, q = (values.softmax(dim=1) + 1e-8 for values in (x, base))
    importance = ((x - base).abs() * (p * (p / q).log()).sum(dim=1, keepdim=True)).flatten()
    return [float(importance.kthvalue(data.n - k + 1).values) for k in data.spec.kept]


def _take_important(data: Data) -> Tensor:
    assert isinstance(data.spec, TakeImportant)
    assert data.base is not None
    (delta,) = _values(data)
    divergence = torch.from_numpy(data.spec.divergences).to(data.device)[:, None]
    important = (delta.abs().view(-1, data.spec.columns) * divergence >= data.spec.threshold).flatten()
    return torch.where(important, data.inputs[0], data.base).to(data.out_dtype)


def _nearswap(data: Data) -> Tensor:
    assert isinstance(data.spec, NearSwap)
    assert data.base is not None
    base, x = data.base.to(data.compute), data.inputs[0].to(data.compute)
    share = (data.spec.t / (x - base).abs().clamp(min=1e-6)).clamp(max=1.0)
    return torch.lerp(base, x, share).to(data.out_dtype)


def _selected(data: Data, selection: Trim | None) -> Tensor:
    """[M, N] the deltas where the models vary enough."""
    deltas = torch.stack(_values(data))
    if selection is None:
        return deltas
    return deltas * (deltas.var(dim=0, correction=0) * len(deltas) >= selection.magnitude)


def _values(data: Data) -> list[Tensor]:
    """The inputs, or their deltas, in the compute dtype."""
    values = [x.to(data.compute) for x in data.inputs]
    if data.base is None:
        return values
    base = data.base.to(data.compute)
    return [x - base for x in values]


def _masked(delta: Tensor, mask: Mask) -> Tensor:
    if isinstance(mask, Drop):
        return delta * torch.bernoulli(torch.full_like(delta, mask.threshold / 2**32))
    if isinstance(mask, RankedDrop):
        ranks = delta.view(-1, mask.columns).abs().argsort(dim=1).argsort(dim=1).to(delta.dtype)
        rising = 2 * mask.epsilon * ranks / max(mask.columns - 1, 1)
        return delta * torch.bernoulli(mask.density - mask.epsilon + rising).flatten()
    if mask is None:
        return delta
    magnitude = delta.abs()
    return delta * ((magnitude >= mask.magnitude) & (magnitude <= mask.upper))


BY_HAND: dict[str, Callable[[Data], object]] = {
    "copy": _copy,
    "nonfinite": _count_nonfinite,
    "weighted_sum": _weighted_sum,
    "weighted_deltas": _weighted_sum,
    "gram": _gram,
    "gram_deltas": _gram,
    "gram_rows": _gram_vectors,
    "gram_columns": _gram_vectors,
    "weighted_rows": _weighted_vectors,
    "weighted_columns": _weighted_vectors,
    "kth_magnitudes": _kth_magnitudes,
    "magnitude_counts": _magnitude_counts,
    "magnitude_low_counts": _magnitude_counts,
    "magnitude_sums": _magnitude_sums,
    "ties": _consensus,
    "breadcrumbs": _consensus,
    "dare_ties": _consensus,
    "della": _consensus,
    "dare_linear": _consensus,
    "largest_variances": _largest_variances,
    "energies": _energies,
    "overlap_counts": _overlap_counts,
    "selective_consensus": _selective_consensus,
    "overlap_mean": _overlap_mean,
    "importance_quantiles": _importance_quantiles,
    "take_important": _take_important,
    "nearswap": _nearswap,
}
"""By the name of the operation."""
