"""Passthrough: the one model as it is, for stacking layers of several models."""

from mergecore.methods.method import Params, PerInput, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import Combine, Copy, WeightedSum


class PassthroughParams(Params):
    scale: PerInput[float | None] = None  # type: ignore[assignment]
    """Factor on each element; none copies the tensor as it is."""


@method(
    "passthrough",
    params=PassthroughParams,
    example=PassthroughParams(scale=(None,)),
    paper="No paper; known from the layer-stacked models of the community, such as Goliath 120B (2023)",
    space="weights",
    base="ignored",
    models=(1, 1),
    missing="error",
)
def passthrough(p: PassthroughParams, target: Target) -> Combine:
    """Copies the tensors of one model per slice, bit for bit, or multiplied by `scale`."""
    scale = p.scale[0]
    return Copy() if scale is None else WeightedSum((scale,))
