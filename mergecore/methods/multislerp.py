"""Multi-SLERP: the weighted mean direction of any number of models, at their weighted mean length."""

from math import fsum, sqrt

from mergecore.errors import RunError
from mergecore.methods.linear import normalized
from mergecore.methods.method import Params, PerTask, Recipe, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Copy, Gram, WeightedSum

LEAST_DIRECTION = 1e-3
"""Mean of unit vectors, as a share of the sum of the weights' magnitudes: a shorter one is too near zero to have a
direction, as the dot products are exact to about 1e-8.
"""


class MultislerpParams(Params):
    weight: PerTask[float]
    """Share of this model."""
    normalize_weights: bool = True
    """Divide the weights by their sum."""
    eps: float = 1e-8
    """Is added to the lengths that are divided by."""


@method(
    "multislerp",
    params=MultislerpParams,
    example=MultislerpParams(weight=(0.5, 0.3, 0.2)),
    paper="No paper; Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    space="deltas",
    base="optional",
    models=(1, None),
    base_counts=False,
    measures="the Gram matrix",
)
def multislerp(p: MultislerpParams, target: Target) -> Recipe:
    """The weighted mean of the models' directions, or with a base of their deltas', at the weighted mean of their
    lengths. Each tensor is one vector.

    Of two opposite vectors the weighted sum is taken; more that cancel are an error, but for vectors of zeros alone.

    mergekit then follows the tangent Σ wᵢ (uᵢ - (uᵢ·m) m) from the mean direction m. That is Σ wᵢ uᵢ less its own part
    along m, which is zero; so nothing is left to follow.
    """
    if len(target.models) == 1:
        return Copy()
    weights = normalized(p.weight, target, "normalize_weights") if p.normalize_weights else p.weight
    dots: list[list[float]] = yield Gram()
    n = len(dots)
    lengths = [sqrt(dots[i][i]) for i in range(n)]
    if not any(lengths):
        return WeightedSum((0.0,) * n)
    shares = [w / (length + p.eps) if length else 0.0 for w, length in zip(weights, lengths, strict=True)]
    mean = sqrt(max(fsum(shares[i] * shares[j] * dots[i][j] for i in range(n) for j in range(n)), 0.0))
    if mean <= max(p.eps, LEAST_DIRECTION * fsum(map(abs, weights))):
        return WeightedSum(_opposite(weights, target))
    scale = fsum(w * length for w, length in zip(weights, lengths, strict=True)) / mean
    return WeightedSum(tuple(scale * share for share in shares))


def _opposite(weights: tuple[float, ...], target: Target) -> tuple[float, ...]:
    """The weights of vectors whose directions cancel. Raises RunError if they are more than two."""
    if len(weights) > 2:
        raise RunError.at(
            target.name,
            f"the weighted directions of the {len(weights)} models cancel, so they have no mean direction",
            "other weights may help, or another method for such tensors",
        )
    return weights
