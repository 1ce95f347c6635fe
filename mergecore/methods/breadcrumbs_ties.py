"""Breadcrumbs with TIES: leave out the outliers and all that is small, elect a sign per element."""

from mergecore.methods.method import Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import BreadcrumbsParams, bands, consensus, rescales


@method(
    "breadcrumbs_ties",
    params=BreadcrumbsParams,
    example=BreadcrumbsParams(weight=(0.6, 0.4), density=(0.5, 0.5), gamma=(0.05, 0.05)),
    paper="Davari & Belilovsky 2023, Model Breadcrumbs, https://arxiv.org/abs/2312.06795, with the election of "
    "Yadav et al. 2023, https://arxiv.org/abs/2306.01708",
    space="deltas",
    base="required",
    models=(1, None),
    measures="two k-th magnitudes of each delta",
)
def breadcrumbs_ties(p: BreadcrumbsParams, target: Target) -> Recipe:
    """Removes the largest magnitudes of each delta (a fraction `gamma`), keeps the largest of the others (a fraction
    `density` of all elements), elects the sign of each element by the weighted sum, and adds up the deltas that have
    that sign.

    Exactly trunc(density · N) elements of each tensor are kept, whatever `gamma` is; among equal magnitudes a hash of
    the element's position decides. Where gamma · N is below 1, nothing is removed at the top.
    """
    masks = yield from bands(p, target)
    factors = yield from rescales(p, masks)
    return consensus(p, masks, factors, elect=True)
