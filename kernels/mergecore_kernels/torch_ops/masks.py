"""Apply any mask to a delta."""

from __future__ import annotations

from torch import Tensor

from mergecore_kernels.operations import Drop, Mask, RankedDrop
from mergecore_kernels.torch_ops.counter_hash import block_parts
from mergecore_kernels.torch_ops.drop import drop
from mergecore_kernels.torch_ops.ranked_drop import ranked_drop
from mergecore_kernels.torch_ops.trim import trim
from mergecore_kernels.torch_ops.workspace import Workspace


def apply_mask(delta: Tensor, mask: Mask, start: int, workspace: Workspace) -> None:
    """Set what the mask doesn't keep to +0, in place.

    Shapes: delta [n], the elements from `start` on; for a `RankedDrop` whole rows.
    """
    if mask is None:
        return
    if isinstance(mask, RankedDrop):
        ranked_drop(delta, mask, start, workspace)
    elif isinstance(mask, Drop):
        drop(delta, mask, start, workspace)
    else:
        for part in block_parts(start, delta.numel()):
            trim(delta[part], mask, start + part.start, workspace)
