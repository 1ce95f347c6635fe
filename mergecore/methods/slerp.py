"""SLERP: walk the great circle from the base model to the other one."""

from math import prod, sqrt

from mergecore.methods.method import Params, Recipe, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Gram, WeightedSum
from mergecore_kernels.trigonometry import arc_cosine, sine

LINEAR_ABOVE = 0.9995
"""Cosine from which on the arc is so short that the tensors are mixed linearly."""
SMALLEST_NORM = 1e-8
"""A tensor no longer than this has no direction: it counts as perpendicular to every other."""


class SlerpParams(Params):
    t: float
    """Position on the arc: 0 gives the base model, 1 the other. Outside [0, 1] extrapolates."""


@method(
    "slerp",
    params=SlerpParams,
    example=SlerpParams(t=0.3),
    paper="Shoemake 1985, Animating rotation with quaternion curves, https://doi.org/10.1145/325334.325242",
    space="weights",
    base="optional",
    models=(2, 2),
    measures="the Gram matrix",
    missing="keep_single",
)
def slerp(p: SlerpParams, target: Target) -> Recipe:
    """Spherical interpolation of two models, tensor by tensor.

    Each tensor is one vector. Nearly parallel vectors are mixed linearly. Without `base_model`, the first model is
    the base.
    """
    base = target.base or 0
    of_base, of_other = arc_weights((yield Gram()), base, 1 - base, p.t)
    return WeightedSum((of_base, of_other) if base == 0 else (of_other, of_base))


def arc_weights(dots: list[list[float]], base: int, other: int, t: float) -> tuple[float, float]:
    """Gram matrix [M, M] -> weights of `base` and `other` at the position t on the arc between them."""
    norms = [sqrt(dots[i][i]) for i in (base, other)]
    scale = prod(norm if norm > SMALLEST_NORM else 1.0 for norm in norms)
    cosine = max(-1.0, min(1.0, dots[base][other] / scale))
    if abs(cosine) > LINEAR_ABOVE:
        return 1.0 - t, t
    angle = arc_cosine(cosine)
    return sine((1.0 - t) * angle) / sine(angle), sine(t * angle) / sine(angle)
