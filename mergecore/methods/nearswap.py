"""NearSwap: take the other model's element where it is near the base, and move towards it where it is not."""

from mergecore.methods.method import Params, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import NearSwap


class NearSwapParams(Params):
    t: float
    """Distance up to which an element is taken from the other model. Beyond it, the base moves towards it by t."""


@method(
    "nearswap",
    params=NearSwapParams,
    example=NearSwapParams(t=0.001),
    paper="No paper; alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    space="deltas",
    base="required",
    models=(2, 2),
)
def nearswap(p: NearSwapParams, target: Target) -> NearSwap:
    """Moves each element of the base to that of the other model, but by no more than `t`."""
    return NearSwap(p.t)
