"""DARE with TIES: drop elements of each delta at random, rescale the rest, elect a sign per element."""

from mergecore.methods.method import Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import DareParams, consensus, drops, rescales


@method(
    "dare_ties",
    params=DareParams,
    example=DareParams(weight=(0.6, 0.4), density=(0.5, 0.5)),
    paper="Yu et al. 2023, Language models are super Mario, https://arxiv.org/abs/2311.03099, with the election of "
    "Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, None),
    measures="the sums of magnitudes before and after the drop",
    random=True,
)
def dare_ties(p: DareParams, target: Target) -> Recipe:
    """Keeps each element of a delta with the probability `density`, rescales what is kept, elects the sign of each
    element by the weighted sum and adds up the deltas that have that sign.

    Which elements are kept depends on the seed alone, not on device, workers or memory.
    """
    masks = drops(p, target)
    factors = yield from rescales(p, masks)
    return consensus(p, masks, factors, elect=True)
