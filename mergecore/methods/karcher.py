"""Karcher mean: the point on the sphere that is nearest to the directions of all models."""

from collections.abc import Sequence
from math import fsum, pi, sqrt

from mergecore.methods.method import Params, Recipe, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Copy, Gram, WeightedSum
from mergecore_kernels.trigonometry import arc_cosine, sine

LEAST_MEAN = 1e-3
"""Mean of unit vectors that is too near zero to have a direction, as the dot products are exact to about 1e-8."""
OPPOSITE = -1 + 1e-6
"""Cosine up to which a direction is opposite to the mean: none of the ways there is the shortest."""

Matrix = Sequence[Sequence[float]]


class KarcherParams(Params):
    max_iter: int = 10
    """Steps at most."""
    tol: float = 1e-5
    """Stop when a step is shorter than this. Tensors that are not longer than this have no direction."""


@method(
    "karcher",
    params=KarcherParams,
    example=KarcherParams(),
    paper="Karcher 1977, Riemannian center of mass and mollifier smoothing, https://doi.org/10.1002/cpa.3160300502",
    space="weights",
    base="ignored",
    models=(1, None),
    measures="the Gram matrix",
)
def karcher(p: KarcherParams, target: Target) -> Recipe:
    """The Riemannian mean of the models' directions on the sphere, at the mean of their lengths. Each tensor is one
    vector, and all models weigh the same, a base among them.

    Starts from the mean of the unit vectors and moves, at most `max_iter` times, by the mean of the arcs to them.
    Tensors that are no longer than `tol` count for the length alone.
    """
    n = len(target.models)
    if n == 1:
        return Copy()
    dots: list[list[float]] = yield Gram()
    lengths = [sqrt(dots[i][i]) for i in range(n)]
    directed = [i for i in range(n) if lengths[i] > p.tol]
    weights = [0.0] * n
    if not directed:
        return WeightedSum(tuple(weights))
    cosines = [[dots[i][j] / (lengths[i] * lengths[j]) for j in directed] for i in directed]
    for i, part in zip(directed, mean_direction(cosines, p), strict=True):
        weights[i] = fsum(lengths) / n * part / lengths[i]
    return WeightedSum(tuple(weights))


def mean_direction(cosines: Matrix, p: KarcherParams) -> list[float]:
    """Cosines [K, K] between unit vectors -> [K] their weights in the unit vector that is their Karcher mean."""
    k = len(cosines)
    mean = _start(cosines, p)
    for _ in range(p.max_iter):
        tangent = [0.0] * k
        for i in range(k):
            cosine = max(-1.0, min(1.0, fsum(c * m for c, m in zip(cosines[i], mean, strict=True))))
            angle = arc_cosine(cosine)
            if angle < p.tol or cosine < OPPOSITE:
                continue
            factor = angle / sine(angle) / k
            tangent = [t - factor * cosine * m for t, m in zip(tangent, mean, strict=True)]
            tangent[i] += factor
        step = _length(cosines, tangent)
        if step < p.tol:
            break
        mean = [sine(pi / 2 - step) * m + sine(step) / step * t for m, t in zip(mean, tangent, strict=True)]
        mean = _scaled(mean, 1 / _length(cosines, mean))
    return mean


def _start(cosines: Matrix, p: KarcherParams) -> list[float]:
    """The direction of the unit vectors' mean, or of the first where they cancel."""
    k = len(cosines)
    mean = [1 / k] * k
    length = _length(cosines, mean)
    return _scaled(mean, 1 / length) if length > max(p.tol, LEAST_MEAN) else [1.0, *[0.0] * (k - 1)]


def _length(cosines: Matrix, weights: Sequence[float]) -> float:
    """Of Σ wᵢ uᵢ."""
    square = fsum(a * b * c for a, row in zip(weights, cosines, strict=True) for b, c in zip(weights, row, strict=True))
    return sqrt(max(square, 0.0))


def _scaled(weights: Sequence[float], factor: float) -> list[float]:
    return [factor * weight for weight in weights]
