"""RAM+: as RAM, with the changes that a model made alone amplified where it shares many others."""

from mergecore.methods.method import Recipe, Target
from mergecore.methods.ram import RamParams
from mergecore.methods.registry import method
from mergecore_kernels.operations import OverlapCounts, OverlapMean


class RamPlusParams(RamParams):
    r: float = 0.1
    """How much a model's unique changes grow with the ratio of its shared changes to its unique ones."""
    alpha: float = 0.2
    """The largest ratio that counts."""


@method(
    "ramplus_tl",
    params=RamPlusParams,
    example=RamPlusParams(),
    paper="Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, https://arxiv.org/abs/2601.13572",
    space="deltas",
    base="required",
    models=(1, None),
    measures="how many elements each model shares with others, and how many it has alone",
)
def ramplus_tl(p: RamPlusParams, target: Target) -> Recipe:
    """base + the mean of the deltas of those models that have changed the element; a change that one model alone has
    made is multiplied by 1 + r · min(shared / unique, alpha), the model's numbers of such elements in this tensor.
    """
    counts: list[tuple[int, int]] = yield OverlapCounts(p.epsilon)
    return OverlapMean(p.epsilon, tuple(unique_scale(p, shared, unique) for shared, unique in counts))


def unique_scale(p: RamPlusParams, shared: int, unique: int) -> float:
    """Factor on the unique changes of a model. Without any, nothing is multiplied by it."""
    ratio = shared / max(unique, 1)
    return 1 + p.r * min(max(ratio, 0.0), p.alpha)
