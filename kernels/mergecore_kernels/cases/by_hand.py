"""Each operation as one would write it by hand in torch: the baseline of the benchmarks.

Whole tensors in float32, one torch call per step, random numbers from torch's generator. So the masks of a drop are not
those of the case, and an equal magnitude is always kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergecore_kernels.cases.data import Data
from mergecore_kernels.operations import (
    Consensus,
    Drop,
    Energies,
    KthMagnitudes,
    MagnitudeSums,
    NearSwap,
    OverlapCounts,
    OverlapMean,
    SelectiveConsensus,
    Trim,
    WeightedSum,
)  # fmt: skip


def _copy(data: Data) -> Tensor:
    return data.inputs[0].clone()


def _count_nonfinite(data: Data) -> int:
    return int((~torch.isfinite(data.inputs[0])).sum())


def _weighted_sum(data: Data) -> Tensor:
    assert isinstance(data.spec, WeightedSum)
    merged = torch.zeros_like(data.inputs[0], dtype=torch.float32) if data.base is None else data.base.float()
    for weight, value in zip(data.spec.weights, _values(data), strict=True):
        merged = merged + weight * value
    return merged.to(data.inputs[0].dtype)


def _gram(data: Data) -> Tensor:
    values = torch.stack(_values(data))
    return values @ values.T


def _kth_magnitudes(data: Data) -> list[float]:
    assert isinstance(data.spec, KthMagnitudes)
    pairs = zip(_values(data), data.spec.kept, strict=True)
    return [float(delta.abs().kthvalue(data.n - k + 1).values) for delta, k in pairs]


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
    return (data.base.float() + merged).to(data.base.dtype)


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
    return (data.base.float() + merged).to(data.base.dtype)


def _overlap_mean(data: Data) -> Tensor:
    assert isinstance(data.spec, OverlapMean)
    assert data.base is not None
    deltas = torch.stack(_values(data))
    active = deltas.abs() > data.spec.threshold
    deltas = deltas * active
    count = active.sum(dim=0)
    alone = (deltas * torch.tensor(data.spec.scales, device=data.device).unsqueeze(1)).sum(dim=0)
    merged = torch.where(count == 1, alone, deltas.sum(dim=0) / count.clamp(min=1))
    return (data.base.float() + merged).to(data.base.dtype)


def _nearswap(data: Data) -> Tensor:
    assert isinstance(data.spec, NearSwap)
    assert data.base is not None
    base, x = data.base.float(), data.inputs[0].float()
    share = (data.spec.t / (x - base).abs().clamp(min=1e-6)).clamp(max=1.0)
    return torch.lerp(base, x, share).to(data.base.dtype)


def _selected(data: Data, selection: Trim | None) -> Tensor:
    """[M, N] the deltas where the models vary enough."""
    deltas = torch.stack(_values(data))
    if selection is None:
        return deltas
    return deltas * (deltas.var(dim=0, correction=0) * len(deltas) >= selection.magnitude)


def _values(data: Data) -> list[Tensor]:
    """The inputs, or their deltas, in float32."""
    if data.base is None:
        return [x.float() for x in data.inputs]
    base = data.base.float()
    return [x.float() - base for x in data.inputs]


def _masked(delta: Tensor, mask: Trim | Drop | None) -> Tensor:
    if isinstance(mask, Drop):
        return delta * torch.bernoulli(torch.full_like(delta, mask.threshold / 2**32))
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
    "kth_magnitudes": _kth_magnitudes,
    "magnitude_sums": _magnitude_sums,
    "ties": _consensus,
    "breadcrumbs": _consensus,
    "dare_ties": _consensus,
    "dare_linear": _consensus,
    "energies": _energies,
    "overlap_counts": _overlap_counts,
    "selective_consensus": _selective_consensus,
    "overlap_mean": _overlap_mean,
    "nearswap": _nearswap,
}
"""By the name of the operation."""
