"""NuSLERP: SLERP by weights, on whole tensors or vector by vector, of weights or of deltas."""

import numpy as np

from mergecore.methods.method import Params, PerTask, Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.vectors import Array, Vectors, gram_of, weighted
from mergecore_kernels.trigonometry import arc_cosine, sine

LINEAR_ABOVE = 1 - 1e-5
"""Cosine, of either sign, from which on vectors are mixed linearly. Among nearly parallel ones that changes the result
by less than 4e-6 of its size; opposite ones are joined by no single arc, and near them its weights grow beyond 200.
"""
LEAST_LENGTH = 1e-7
"""Vectors shorter than this count as this long when angles are measured: those of length 0 are perpendicular to all."""
LEAST_SUM = 1e-6
"""Weights that add up to less than this in magnitude count as equal."""


class NuslerpParams(Params):
    weight: PerTask[float]
    """Share of this model: the position on the arc is the second model's part of the sum."""
    nuslerp_flatten: bool = True
    """Treat each tensor as one vector. If not, each vector in it has an angle of its own."""
    nuslerp_row_wise: bool = False
    """If not flattened, take the vectors along the first axis instead of the last."""


@method(
    "nuslerp",
    params=NuslerpParams,
    example=NuslerpParams(weight=(0.7, 0.3)),
    paper="No paper; mergekit's NuSLERP, https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    space="deltas",
    base="optional",
    models=(2, 2),
    base_counts=False,
    measures="the Gram matrix, of all vectors",
    missing="keep_single",
)
def nuslerp(p: NuslerpParams, target: Target) -> Recipe:
    """Spherical interpolation of two models, or with a base of their deltas from it.

    The tensor is one vector, or each row or column is. Nearly parallel and nearly opposite vectors are mixed linearly.
    """
    vectors: Vectors = "tensor"
    if not p.nuslerp_flatten and len(target.shape) > 1:
        vectors = "columns" if p.nuslerp_row_wise else "rows"
    dots = np.array((yield gram_of(vectors, target)))
    return weighted(vectors, arc_weights(dots, position(p.weight)), target)


def position(weight: tuple[float, ...]) -> float:
    """On the arc: 0 is the first model, 1 the second."""
    total = weight[0] + weight[1]
    return 0.5 if abs(total) < LEAST_SUM else weight[1] / total


def arc_weights(dots: Array, t: float) -> tuple[Array, Array]:
    """Gram matrices [2, 2, ...] -> the weights [...] of both vectors at the position t on the arc between them."""
    lengths = np.maximum(np.sqrt((dots[0, 0], dots[1, 1])), LEAST_LENGTH)
    cosine = np.clip(dots[0, 1] / (lengths[0] * lengths[1]), -1.0, 1.0)
    straight = np.abs(cosine) > LINEAR_ABOVE
    angle = arc_cosine(np.where(straight, 0.0, cosine))
    first, second = (np.where(straight, part, sine(part * angle) / sine(angle)) for part in (1.0 - t, t))
    return first, second
