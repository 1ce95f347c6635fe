"""The operations as merge methods use them, with what each must read and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mergecore_kernels.operations import (
    HASH_RANGE,
    Combine,
    Consensus,
    Copy,
    Drop,
    Energies,
    Gram,
    Key,
    KthMagnitudes,
    MagnitudeSums,
    Measure,
    NearSwap,
    OverlapCounts,
    OverlapMean,
    SelectiveConsensus,
    Trim,
    WeightedSum,
)

DENSITY = 0.5
"""Share of the elements that masks keep."""
OUTLIERS = 0.02
"""Share of the elements above the band of `breadcrumbs`."""
ACTIVE = 2.0**-11
"""Magnitude of a delta above which `overlap_*` take it to be there."""
VARYING = 2.0**-23
"""Sum of squared deviations above which the models are taken to vary; half of the elements equal to it are kept too."""
HASH_STEPS = 14
"""Integer arithmetic of one counter hash and its comparison."""

Spec: TypeAlias = Measure | Combine | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a spec is made from: M models and N elements, and trims that keep DENSITY and OUTLIERS of each delta."""

    m: int
    n: int
    keys: tuple[Key, ...]
    trims: Callable[[float], tuple[Trim, ...]]

    @property
    def weights(self) -> tuple[float, ...]:
        """[M] falling, of sum 1."""
        return tuple((self.m - i) / (self.m * (self.m + 1) / 2) for i in range(self.m))

    @property
    def drops(self) -> tuple[Drop, ...]:
        return tuple(Drop.keeping(DENSITY, key) for key in self.keys)

    @property
    def kept(self) -> tuple[int, ...]:
        """[M] k of each delta."""
        return (int(self.n * DENSITY),) * self.m


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation with the parameters of one method."""

    name: str
    gives: str
    make_spec: Callable[[Request], Spec]
    """None: the count of non-finite elements, which needs no spec."""
    steps: Callable[[int], int]
    """Arithmetic per element of the tensor (adds, multiplications, comparisons, bit operations) of M models."""
    base: bool = True
    """It works on deltas."""
    writes: bool = False
    """It gives a tensor; else a few numbers."""
    single: bool = False
    """It has one input, whatever M."""
    sums: bool = False
    """One NaN or Inf among the inputs makes the whole result NaN or Inf."""


def _masked(request: Request, masks: Sequence[Trim | Drop], rescale: float, elect: bool, normalize: bool) -> Consensus:
    return Consensus(request.weights, tuple(masks), (rescale,) * request.m, elect, normalize, scale=1.0)


def _ties(request: Request) -> Consensus:
    return _masked(request, request.trims(DENSITY), 1.0, elect=True, normalize=True)


def _breadcrumbs(request: Request) -> Consensus:
    """The band between two ranks."""
    pairs = zip(request.trims(DENSITY), request.trims(OUTLIERS), strict=True)
    bands = [replace(low, upper=high.magnitude, upper_cut=high.hash_cut) for low, high in pairs]
    return _masked(request, bands, 1.0, elect=False, normalize=False)


def _dare_ties(request: Request) -> Consensus:
    return _masked(request, request.drops, 1 / DENSITY, elect=True, normalize=False)


def _dare_linear(request: Request) -> Consensus:
    return _masked(request, request.drops, 1 / DENSITY, elect=False, normalize=False)


def _weighted_sum(request: Request) -> WeightedSum:
    return WeightedSum(request.weights)


def _selection(request: Request) -> Trim:
    return Trim(VARYING, HASH_RANGE // 2, request.keys[0])


def _overlap_mean(request: Request) -> OverlapMean:
    return OverlapMean(ACTIVE, tuple(1 + weight for weight in request.weights))


def _selective_consensus(request: Request) -> SelectiveConsensus:
    return SelectiveConsensus(request.weights, _selection(request))


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("copy", "the tensor", lambda _: Copy(), lambda m: 0, base=False, writes=True, single=True),
        Operation("nonfinite", "how many are NaN or Inf", lambda _: None, lambda m: 2, base=False, single=True),
        Operation("weighted_sum", "linear, slerp", _weighted_sum, lambda m: 2 * m - 1, base=False, writes=True),
        Operation("weighted_deltas", "task arithmetic", _weighted_sum, lambda m: 3 * m, writes=True),
        Operation("gram", "all dot products", lambda _: Gram(), lambda m: m * (m + 1), base=False, sums=True),
        Operation("gram_deltas", "all dot products of deltas", lambda _: Gram(), lambda m: m + m * (m + 1), sums=True),
        Operation("kth_magnitudes", "trim thresholds", lambda r: KthMagnitudes(r.kept, r.keys), lambda m: 3 * m),
        Operation(
            "magnitude_sums",
            "sums of |delta| before and after a drop",
            lambda r: MagnitudeSums(r.drops),
            lambda m: m * (5 + HASH_STEPS),
            sums=True,
        ),
        Operation("ties", "trim, elect, mean", _ties, lambda m: 9 * m + 4, writes=True),
        Operation("breadcrumbs", "keep a band, sum", _breadcrumbs, lambda m: 6 * m, writes=True),
        Operation("dare_ties", "drop, elect, sum", _dare_ties, lambda m: m * (7 + HASH_STEPS) + 3, writes=True),
        Operation("dare_linear", "drop, sum", _dare_linear, lambda m: m * (4 + HASH_STEPS), writes=True),
        Operation(
            "energies",
            "sums of squares where models vary",
            lambda r: Energies(_selection(r)),
            lambda m: 8 * m,
            sums=True,
        ),
        Operation("overlap_counts", "shared and unique", lambda _: OverlapCounts(ACTIVE), lambda m: 6 * m),
        Operation(
            "selective_consensus", "SCE: select, elect, mean", _selective_consensus, lambda m: 12 * m, writes=True
        ),
        Operation("overlap_mean", "RAM: mean where deltas overlap", _overlap_mean, lambda m: 8 * m, writes=True),
        Operation("nearswap", "swap what is near", lambda _: NearSwap(ACTIVE), lambda m: 9, writes=True, single=True),
    )
}
"""By name."""
