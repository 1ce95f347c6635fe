"""TIES: trim each delta, elect a sign per element, average the deltas that have it."""

from collections.abc import Sequence
from typing import Literal

from mergecore.methods.global_trim import global_cuts, global_masks
from mergecore.methods.method import Recipe, Survey, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import SparseParams, consensus, rescales, trims


class TiesParams(SparseParams):
    normalize: bool = True
    """Divide each element by the sum of the weights of the deltas that agree there, which makes the sum an average."""
    trim: Literal["tensor", "global"] = "tensor"
    """Where the largest magnitudes are looked for: in each tensor, or in the whole model, as in the paper."""


def survey(tensors: Sequence[tuple[TiesParams, Target]]) -> Survey:
    """The cuts of the models, if they are trimmed as a whole."""
    return (yield from global_cuts([(p, target) for p, target in tensors if p.trim == "global"]))


@method(
    "ties",
    params=TiesParams,
    example=TiesParams(weight=(0.6, 0.4), density=(0.5, 0.5)),
    paper="Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, None),
    measures="the k-th magnitudes of the deltas",
    survey=survey,
)
def ties(p: TiesParams, target: Target) -> Recipe:
    """Keeps the largest magnitudes of each delta (a fraction `density`), elects the sign of each element by the
    weighted sum, and averages the deltas that have that sign.

    Exactly trunc(density · N) elements of each tensor are kept, at least one; among equal magnitudes a hash of the
    element's position decides.
    """
    masks = global_masks(target) if p.trim == "global" else (yield from trims(p, target))
    factors = yield from rescales(p, masks)
    return consensus(p, masks, factors, elect=True)
