"""Linear: the weighted average of the models."""

from mergecore.errors import PlanError
from mergecore.methods.method import Params, PerInput, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import WeightedSum


class LinearParams(Params):
    weight: PerInput[float]
    """Share of this model in the sum."""
    normalize: bool = True
    """Divide the weights by their sum, which makes the sum an average."""


@method(
    "linear",
    params=LinearParams,
    example=LinearParams(weight=(0.7, 0.3)),
    paper="Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482",
    space="weights",
    base="ignored",
    models=(1, None),
)
def linear(p: LinearParams, target: Target) -> WeightedSum:
    """The weighted average of the models (or their weighted sum, with `normalize: false`)."""
    if not p.normalize:
        return WeightedSum(p.weight)
    total = sum(p.weight)
    if total == 0:
        raise PlanError.at(
            target.name,
            f"the weights {', '.join(f'{w:g}' for w in p.weight)} add up to 0, so they can't be normalized",
            "set `normalize: false`, or weights with another sum",
        )
    return WeightedSum(tuple(w / total for w in p.weight))
