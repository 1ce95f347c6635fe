"""The operations as merge methods use them, with what each must read and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergecore_kernels.operations import (
    HASH_RANGE,
    MAGNITUDE_LOW_BITS,
    Combine,
    Consensus,
    Copy,
    Drop,
    Energies,
    Gram,
    GramColumns,
    GramRows,
    ImportanceQuantiles,
    Key,
    KthMagnitudes,
    LargestVariances,
    MagnitudeCounts,
    MagnitudeSums,
    Measure,
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
)

DENSITY = 0.5
"""Share of the elements that masks keep."""
SPREAD = 0.1
"""How much the smallest magnitudes of a row are kept less often than that, and the largest more often."""
OUTLIERS = 0.02
"""Share of the elements above the band of `breadcrumbs`."""
ACTIVE = 2.0**-11
"""Magnitude of a delta above which `overlap_*` take it to be there."""
VARYING = 2.0**-23
"""Sum of squared deviations above which the models are taken to vary; half of the elements equal to it are kept too."""
HASH_STEPS = 14
"""Integer arithmetic of one counter hash and its comparison."""

SORT_STEPS = 100
"""Comparisons of an element that is sorted within its row, about."""
EXPONENTIAL_STEPS = 80
"""Arithmetic of the exponentials and logarithms of an element, in float64."""

Spec: TypeAlias = Measure | Combine | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a spec is made of: M models, N elements in rows, trims that keep DENSITY and OUTLIERS of each delta."""

    m: int
    n: int
    columns: int
    """Elements of a row."""
    keys: tuple[Key, ...]
    trims: Callable[[float], tuple[Trim, ...]]

    @property
    def weights(self) -> tuple[float, ...]:
        """[M] falling, of sum 1."""
        return tuple((self.m - i) / (self.m * (self.m + 1) / 2) for i in range(self.m))

    @property
    def ramps(self) -> NDArray[np.float64]:
        """[the number of rows or of columns, whichever is more] numbers from 1 to 2, exact in float32."""
        return 1 + np.arange(max(self.n // self.columns, self.columns)) % 9 / 8

    def weight_vectors(self, length: int) -> tuple[NDArray[np.float64], ...]:
        """[M] arrays [length]"""
        return tuple(weight * self.ramps[:length] for weight in self.weights)

    @property
    def ranked_drops(self) -> tuple[RankedDrop, ...]:
        return tuple(RankedDrop(DENSITY, SPREAD, self.columns, key) for key in self.keys)

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
    scratch_bytes: int = 0
    """Held on a GPU beside the tensors, per element."""
    sums: bool = False
    """One NaN or Inf among the inputs makes the whole result NaN or Inf."""


def _masked(
    request: Request, masks: Sequence[Trim | Drop | RankedDrop], rescale: float, elect: bool, normalize: bool
) -> Consensus:
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


def _della(request: Request) -> Consensus:
    return _masked(request, request.ranked_drops, 1 / DENSITY, elect=True, normalize=False)


def _weighted_sum(request: Request) -> WeightedSum:
    return WeightedSum(request.weights)


def _weighted_rows(request: Request) -> WeightedRows:
    return WeightedRows(request.weight_vectors(request.n // request.columns), request.columns)


def _weighted_columns(request: Request) -> WeightedColumns:
    return WeightedColumns(request.weight_vectors(request.columns), request.columns)


def _low_counts(request: Request) -> MagnitudeCounts:
    """Of the magnitudes that begin as the one where a trim ends."""
    magnitudes = np.array([trim.magnitude for trim in request.trims(DENSITY)], dtype=np.float32)
    return MagnitudeCounts(tuple((magnitudes.view(np.int32) >> MAGNITUDE_LOW_BITS).tolist()))


def _importance_quantiles(request: Request) -> ImportanceQuantiles:
    return ImportanceQuantiles((0.25, 0.5, 0.75), request.columns, request.n)


def _take_important(request: Request) -> TakeImportant:
    """With divergences that are made up, as no row's has to be found for it."""
    divergences = request.ramps[: request.n // request.columns].astype(np.float32)
    return TakeImportant(ACTIVE, divergences, request.columns)


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
        Operation("gram_rows", "of each row", lambda r: GramRows(r.columns), lambda m: m + m * (m + 1), sums=True),
        Operation(
            "gram_columns", "of each column", lambda r: GramColumns(r.columns), lambda m: m + m * (m + 1), sums=True
        ),
        Operation("weighted_rows", "weights of each row", _weighted_rows, lambda m: 3 * m, writes=True),
        Operation("weighted_columns", "weights of each column", _weighted_columns, lambda m: 3 * m, writes=True),
        Operation("kth_magnitudes", "trim thresholds", lambda r: KthMagnitudes(r.kept, r.keys), lambda m: 3 * m),
        Operation(
            "magnitude_counts", "histogram of first bits", lambda r: MagnitudeCounts((None,) * r.m), lambda m: 6 * m
        ),
        Operation("magnitude_low_counts", "histogram of the other bits", _low_counts, lambda m: 7 * m),
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
        Operation(
            "della",
            "drop by rank in the row, elect, sum",
            _della,
            lambda m: m * (7 + HASH_STEPS + SORT_STEPS) + 3,
            writes=True,
            scratch_bytes=16,  # the mask of a model takes a byte
        ),
        Operation("dare_linear", "drop, sum", _dare_linear, lambda m: m * (4 + HASH_STEPS), writes=True),
        Operation(
            "largest_variances",
            "SCE: where models vary most",
            lambda r: LargestVariances(DENSITY, r.keys[0]),
            lambda m: 4 * m + 3,
            scratch_bytes=8,
        ),
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
        Operation(
            "importance_quantiles",
            "quartiles of delta times divergence",
            _importance_quantiles,
            lambda m: 5 + EXPONENTIAL_STEPS,
            single=True,
            scratch_bytes=8,
        ),
        Operation("take_important", "or the base", _take_important, lambda m: 4, writes=True, single=True),
        Operation("nearswap", "swap what is near", lambda _: NearSwap(ACTIVE), lambda m: 9, writes=True, single=True),
    )
}
"""By name."""
