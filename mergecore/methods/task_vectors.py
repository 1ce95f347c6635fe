"""What the methods on task vectors (deltas from the base) share: their parameters and the steps of their recipes."""

from collections.abc import Generator
from typing import Any

from pydantic import Field

from mergecore.methods.method import Params, PerTask, Target
from mergecore_kernels.operations import Consensus, Drop, KthMagnitudes, MagnitudeSums, Mask, Measure, Trim

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


class DareParams(SparseParams):
    rescale: bool = True
    """Multiply what is kept so that the sum of the magnitudes is what it was before."""


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


def drops(p: SparseParams, target: Target) -> tuple[Mask, ...]:
    """Random masks that keep each element with the probability `density`."""
    return tuple(
        None if density >= 1 else Drop.keeping(density, key)
        for density, key in zip(p.density, target.random_keys("drop"), strict=True)
    )


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
