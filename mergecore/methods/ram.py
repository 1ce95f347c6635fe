"""RAM: average the changes that models share, keep those that a model made alone."""

from mergecore.methods.method import Params, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import OverlapMean


class RamParams(Params):
    epsilon: float = 1e-5
    """A model has changed an element if its delta is larger than this. Smaller changes are left out."""


@method(
    "ram",
    params=RamParams,
    example=RamParams(),
    paper="Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, https://arxiv.org/abs/2601.13572",
    space="deltas",
    base="required",
    models=(1, None),
)
def ram(p: RamParams, target: Target) -> OverlapMean:
    """base + the mean of the deltas of those models that have changed the element; a change that one model alone has
    made is kept as it is, not thinned out by the others' zeros.
    """
    return OverlapMean(p.epsilon, (1.0,) * len(target.models))
