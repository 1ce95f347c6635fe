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
    return WeightedSum(normalized(p.weight, target, "normalize") if p.normalize else p.weight)


def normalized(weights: tuple[float, ...], target: Target, key: str) -> tuple[float, ...]:
    """The weights divided by their sum. Raises PlanError, which names the parameter that asks for it, if that is 0."""
    total = sum(weights)
    if total == 0:
        raise PlanError.at(
            target.name,
            f"the weights {', '.join(f'{w:g}' for w in weights)} add up to 0, so they can't be normalized",
            f"set `{key}: false`, or weights with another sum",
        )
    return tuple(w / total for w in weights)
