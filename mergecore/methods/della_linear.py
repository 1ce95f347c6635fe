"""DELLA, linear: drop elements of each delta at random, small ones more often, rescale the rest, add them up."""

from mergecore.methods.method import Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import DellaParams, consensus, ranked_drops, rescales


@method(
    "della_linear",
    params=DellaParams,
    example=DellaParams(weight=(0.6, 0.4), density=(0.5, 0.5), epsilon=(0.2, 0.1)),
    paper="Deep et al. 2024, DELLA-Merging, https://arxiv.org/abs/2406.11617",
    space="deltas",
    base="required",
    models=(1, None),
    measures="the sums of magnitudes before and after the drop",
    random=True,
    whole_rows=True,
)
def della_linear(p: DellaParams, target: Target) -> Recipe:
    """Keeps the elements of a delta with a probability that rises with their rank in the row, `density` on average,
    rescales what is kept and adds the deltas up.

    A row is a run along the last axis. Equal magnitudes have equal probabilities, and a row of one element has
    `density`. Differs: mergekit refuses a density that is not more than epsilon away from 0 and 1; here epsilon becomes
    as small as it has to be.
    """
    masks = ranked_drops(p, target)
    factors = yield from rescales(p, masks)
    return consensus(p, masks, factors, elect=False)
