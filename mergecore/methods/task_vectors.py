"""What the methods on task vectors (deltas from the base) share: their parameters and the steps of their recipes."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from pydantic import Field

from mergecore.methods.method import Params, PerTask, Target
from mergecore_kernels.operations import (
    HASH_RANGE,
    Consensus,
    Drop,
    Key,
    KthMagnitudes,
    MagnitudeSums,
    Mask,
    Measure,
    RankedDrop,
    Trim,
)

LEAST_SUM = 1e-7
"""Sums of magnitudes below this are taken for zero: there is nothing to rescale."""


class TaskVectorParams(Params):
    weight: PerTask[float]
    """Factor on this model's delta."""
    normalize: bool = False
    """Divide the combined delta by the sum of the weights."""
    lambda_: float = Field(default=1.0, alias="lambda")
    """Factor on the combined delta, before the base is added."""
    int8_mask: bool = False
    """Accepted for mergekit's sake. There it saves memory; it never changes a result."""


class SparseParams(TaskVectorParams):
    density: PerTask[float] = 1.0  # type: ignore[assignment]
    """Fraction of this model's delta that is kept: 1 keeps all."""
    rescale: bool = False
    """Multiply what is kept so that the sum of the magnitudes is what it was before."""


class BreadcrumbsParams(SparseParams):
    gamma: PerTask[float] = 0.01  # type: ignore[assignment]
    """Fraction of this model's delta that is removed at the top: the outliers, whose magnitudes are the largest."""


class DareParams(SparseParams):
    rescale: bool = True
    """Multiply what is kept so that the sum of the magnitudes is what it was before."""


class DellaParams(DareParams):
    epsilon: PerTask[float] = 0.15  # type: ignore[assignment]
    """Within a row the chance to be kept rises with the rank of the magnitude, from density - epsilon to density +
    epsilon. Where these aren't within 0 and 1, epsilon is taken for the largest for which they are."""


def trims(p: SparseParams, target: Target) -> Generator[Measure, Any, tuple[Mask, ...]]:
    """Measure the trims that keep the largest magnitudes: trunc(density · N) of them, at least one."""
    kept = tuple(_kept(density, target.n) for density in p.density)
    if all(k == target.n for k in kept):
        return (None,) * len(kept)
    masks: tuple[Trim | None, ...] = yield KthMagnitudes(kept, target.fixed_keys("trim"))
    return masks


def _kept(density: float, n: int) -> int:
    if density >= 1:
        return n
    return max(1, int(density * n)) if density > 0 and n > 0 else 0


def bands(p: BreadcrumbsParams, target: Target) -> Generator[Measure, Any, tuple[Mask, ...]]:
    """Measure the trims that leave out the outliers, and keep trunc(density · N) of the largest magnitudes below them.

    Where `gamma` leaves fewer than these, so many outliers are kept that there are enough.
    """
    ranks = [_band(density, gamma, target.n) for density, gamma in zip(p.density, p.gamma, strict=True)]
    lowest, outliers = zip(*ranks, strict=True)
    keys = target.fixed_keys("trim")
    if all(k == target.n for k in lowest) and not any(outliers):
        return (None,) * len(keys)
    trims: tuple[Trim | None, ...] = yield KthMagnitudes(lowest + outliers, keys + keys)
    lower, upper = trims[: len(keys)], trims[len(keys) :]
    return tuple(
        _between(low, high, key) if n_outliers else low
        for low, high, key, n_outliers in zip(lower, upper, keys, outliers, strict=True)
    )


def _band(density: float, gamma: float, n: int) -> tuple[int, int]:
    """The rank of the band's last element, by falling magnitude, and the number of outliers before its first one."""
    if density >= 1:
        return n, 0
    size = int(density * n)
    if size <= 0:
        return 0, 0
    last = min(max(size + int(gamma * n), 0), n)
    return last, max(last - size, 0)


def _between(low: Trim | None, high: Trim | None, key: Key) -> Trim:
    """What `low` keeps without what `high` keeps, which is less."""
    assert high is not None
    low = low or Trim(0.0, HASH_RANGE - 1, key)
    return replace(low, upper=high.magnitude, upper_cut=high.hash_cut)


def drops(p: SparseParams, target: Target) -> tuple[Mask, ...]:
    """Random masks that keep each element with the probability `density`."""
    return tuple(
        None if density >= 1 else Drop.keeping(density, key)
        for density, key in zip(p.density, target.random_keys("drop"), strict=True)
    )


def ranked_drops(p: DellaParams, target: Target) -> tuple[Mask, ...]:
    """Random masks that keep each element with the probability `density` on average, large magnitudes more often."""
    return tuple(
        _ranked_drop(density, epsilon, target.columns, key)
        for density, epsilon, key in zip(p.density, p.epsilon, target.random_keys("drop"), strict=True)
    )


def _ranked_drop(density: float, epsilon: float, columns: int, key: Key) -> Mask:
    if density >= 1:
        return None
    if density <= 0:
        return Drop.keeping(0.0, key)
    most = min(density, 1 - density)
    return RankedDrop(density, min(max(epsilon, -most), most), columns, key)


def rescales(p: SparseParams, masks: tuple[Mask, ...]) -> Generator[Measure, Any, tuple[float, ...]]:
    """Measure the factors that give each masked delta the sum of magnitudes that it had before."""
    if not p.rescale or all(mask is None for mask in masks):
        return (1.0,) * len(masks)
    sums: list[tuple[float, float]] = yield MagnitudeSums(masks)
    return tuple(
        1.0 if mask is None or before < LEAST_SUM or after < LEAST_SUM else before / after
        for mask, (before, after) in zip(masks, sums, strict=True)
    )


def consensus(p: SparseParams, masks: tuple[Mask, ...], factors: tuple[float, ...], *, elect: bool) -> Consensus:
    """The combination of deltas that are masked by `masks` and rescaled by `factors`."""
    return Consensus(
        weights=p.weight, masks=masks, rescales=factors, elect=elect, normalize=p.normalize, scale=p.lambda_
    )
