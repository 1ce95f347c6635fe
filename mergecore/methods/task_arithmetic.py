"""Task arithmetic: add the models' differences from the base to it."""

from mergecore.methods.method import PerTask, Target
from mergecore.methods.registry import method
from mergecore.methods.task_vectors import SparseParams
from mergecore_kernels.operations import WeightedSum

LEAST_TOTAL = 1e-8
"""Weights that add up to less than this are not divided by their sum."""


class TaskArithmeticParams(SparseParams):
    density: PerTask[float] = 1.0  # type: ignore[assignment]
    """Accepted for mergekit's sake, without effect: `ties`, `dare_linear` and others make deltas sparse."""
    rescale: bool = False
    """Accepted for mergekit's sake, without effect."""


@method(
    "task_arithmetic",
    params=TaskArithmeticParams,
    example=TaskArithmeticParams(weight=(0.6, 0.4)),
    paper="Ilharco et al. 2023, Editing models with task arithmetic, https://arxiv.org/abs/2212.04089",
    space="deltas",
    base="required",
    models=(1, None),
)
def task_arithmetic(p: TaskArithmeticParams, target: Target) -> WeightedSum:
    """base + λ · Σ weight · (model - base)."""
    return WeightedSum(delta_weights(p))


def delta_weights(p: SparseParams) -> tuple[float, ...]:
    """[M] the weights with λ and, if `normalize`, the division by their sum taken in."""
    total = sum(p.weight)
    divisor = total if p.normalize and abs(total) >= LEAST_TOTAL else 1.0
    return tuple(p.lambda_ * w / divisor for w in p.weight)
