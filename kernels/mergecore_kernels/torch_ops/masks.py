"""Apply any mask to a delta."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.operations import Mask, Trim
from mergecore_kernels.torch_ops.drop import drop
from mergecore_kernels.torch_ops.trim import trim
from mergecore_kernels.torch_ops.workspace import Workspace


def apply_mask(delta: Tensor, mask: Mask, start: int, workspace: Workspace) -> None:
    """Set what the mask doesn't keep to +0, in place. Shapes and `start` as in `drop` and `trim`."""
    if mask is None:
        return
    if isinstance(mask, Trim):
        trim(delta, mask, start, workspace)
    else:
        drop(delta, mask, start, workspace)
