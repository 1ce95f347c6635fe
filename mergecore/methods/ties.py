"""TIES: trim each delta, elect a sign per element, average the deltas that have it."""

from mergecore.methods.method import Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import SparseParams, consensus, rescales, trims


class TiesParams(SparseParams):
    normalize: bool = True
    """Divide each element by the sum of the weights of the deltas that agree there, which makes the sum an average."""


@method(
    "ties",
    params=TiesParams,
    example=TiesParams(weight=(0.6, 0.4), density=(0.5, 0.5)),
    paper="Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, None),
    measures="the k-th magnitudes of the deltas",
)
def ties(p: TiesParams, target: Target) -> Recipe:
    """Keeps the largest magnitudes of each delta (a fraction `density`), elects the sign of each element by the
    weighted sum, and averages the deltas that have that sign.

    Exactly trunc(density · N) elements of each tensor are kept, at least one; among equal magnitudes a hash of the
    element's position decides.
    """
    masks = yield from trims(p, target)
    factors = yield from rescales(p, masks)
    return consensus(p, masks, factors, elect=True)
