"""The weights of experts, as a mixture of experts is assembled from them."""

from mergecore.methods.method import Params, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Combine, Copy, Key, Perturb, Perturbation, WeightedSum


class MoeParams(Params):
    noise_scale: tuple[float, ...]
    """Standard deviation of the noise that is added, for each matrix in the tensor."""
    residual_scale: tuple[float, ...]
    """Factor on each of them, applied after that."""
    names: tuple[str, ...]
    """Of the random numbers of each: the same ones whether experts are stacked in one tensor or not."""


@method(
    "moe",
    params=MoeParams,
    example=MoeParams(noise_scale=(0.01,), residual_scale=(1.0,), names=("a.weight 0",)),
    paper="Komatsuzaki et al. 2022, Sparse upcycling, https://arxiv.org/abs/2212.05055; gates from prompts: no paper",
    space="weights",
    base="ignored",
    models=(1, 1),
    missing="error",
    random=True,
    assembles=True,
)
def moe(p: MoeParams, target: Target) -> Combine:
    """Assembles a mixture of experts: the MLPs of several models side by side in each layer, with a router that sends
    each token to some of them, and all else from the base model.
    """
    if not any(p.noise_scale) and set(p.residual_scale) == {1}:
        return Copy()
    if not any(p.noise_scale) and len(p.residual_scale) == 1:
        return WeightedSum(p.residual_scale)
    runs = (
        Perturbation(noise, scale, Key.of("noise", target.seed, name, 0))
        for noise, scale, name in zip(p.noise_scale, p.residual_scale, p.names, strict=True)
    )
    return Perturb(tuple(runs), target.n // len(p.names))
