"""SCE: select the elements where the models vary most, calculate their weights, erase minority signs."""

from mergecore.methods.method import Params, Recipe, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Energies, LargestVariances, SelectiveConsensus

LEAST_TOTAL = 1e-6
"""Mean squares that add up to less than this are not divided by their sum: all models then weigh the same."""


class SceParams(Params):
    select_topk: float = 1.0
    """Fraction of the elements that is selected, of those where the models vary at all: 1 takes every element."""
    int8_mask: bool = False
    """Accepted for mergekit's sake. There it saves memory; it never changes a result."""


@method(
    "sce",
    params=SceParams,
    example=SceParams(select_topk=0.5),
    paper="Wan et al. 2024, FuseChat: Knowledge Fusion of Chat Models, https://arxiv.org/abs/2408.07990",
    space="deltas",
    base="required",
    models=(1, None),
    measures="the largest variances between the models, the mean squares of the deltas",
)
def sce(p: SceParams, target: Target) -> Recipe:
    """Keeps the elements whose deltas vary most between the models (a fraction `select_topk`), weighs each model by the
    mean square of its delta, and averages, element by element, the deltas that have the sign of their sum.

    Deltas as small as those of most fine-tunes, whose mean squares add up to less than 1e-6, all weigh the same. Where
    nothing varies nothing is selected, which gives the base.
    """
    selection = None
    if p.select_topk < 1:
        selection = yield LargestVariances(p.select_topk, target.fixed_keys("variance")[0])
    energies: list[float] = yield Energies(selection)
    return SelectiveConsensus(model_weights(energies, target.n), selection)


def model_weights(energies: list[float], n: int) -> tuple[float, ...]:
    """[M] sums of squares over n elements -> [M] weights of sum 1."""
    squares = [energy / n for energy in energies]
    total = sum(squares)
    if total < LEAST_TOTAL:
        return (1 / len(squares),) * len(squares)
    return tuple(square / total for square in squares)
