"""What methods that treat a tensor as one vector, or as many, share: the operations for each of these views."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergecore.methods.method import Target
from mergecore_kernels.operations import (
    Combine,
    Gram,
    GramColumns,
    GramRows,
    Measure,
    WeightedColumns,
    WeightedRows,
    WeightedSum,
)

Array: TypeAlias = NDArray[np.float64]
Vectors: TypeAlias = Literal["tensor", "rows", "columns"]
"""What one vector is: the whole tensor, each run along its last axis, or each along its first."""


def gram_of(vectors: Vectors, target: Target) -> Measure:
    """The measurement of the vectors' dot products: [M, M], or [M, M, vectors] where there are many."""
    if vectors == "rows":
        return GramRows(target.columns)
    if vectors == "columns":
        return GramColumns(_columns(target))
    return Gram()


def weighted(vectors: Vectors, weights: Sequence[Array], target: Target) -> Combine:
    """The sum of the vectors with these weights: M numbers, or M arrays with a number for each vector."""
    if vectors == "rows":
        return WeightedRows(tuple(weights), target.columns)
    if vectors == "columns":
        return WeightedColumns(tuple(weights), _columns(target))
    return WeightedSum(tuple(float(weight) for weight in weights))


def _columns(target: Target) -> int:
    """Vectors along the first axis."""
    return target.n // target.shape[0]
