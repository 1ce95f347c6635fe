"""Apply any mask to a delta."""

from __future__ import annotations

import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Drop, Mask, RankedDrop, Trim
from mergecore_kernels.torch_ops.arithmetic import BITS
from mergecore_kernels.torch_ops.counter_hash import block_parts
from mergecore_kernels.torch_ops.drop import keep_at_random
from mergecore_kernels.torch_ops.ranked_drop import keep_by_rank
from mergecore_kernels.torch_ops.trim import trim
from mergecore_kernels.torch_ops.workspace import Workspace


def apply_mask(delta: Tensor, mask: Mask, start: int, workspace: Workspace) -> None:
    """Set what the mask doesn't keep to +0, in place.

    Shapes: delta [n], the elements from `start` on; for a `RankedDrop` whole rows.
    """
    if mask is None or (isinstance(mask, Drop) and mask.threshold >= HASH_RANGE):
        return
    flags = workspace.kept_bits.recall(mask, start, delta.numel())
    if flags is None:
        if isinstance(mask, Trim):
            for part in block_parts(start, delta.numel()):
                trim(delta[part], mask, start + part.start, workspace)
            return
        flags = _flags(delta, mask, start, workspace)
    # The bits times 1 or 0: several times faster than a boolean mask, and a dropped NaN or Inf is gone.
    integers = BITS[delta.dtype]
    delta.view(integers).mul_(workspace.take("kept", delta.numel(), integers).copy_(flags))


def _flags(delta: Tensor, mask: Drop | RankedDrop, start: int, workspace: Workspace) -> Tensor:
    """bool [n] which elements a random mask keeps."""
    flags = workspace.take("below", delta.numel(), torch.bool)
    if isinstance(mask, RankedDrop):
        keep_by_rank(delta, mask, start, flags, workspace)
    else:
        keep_at_random(mask, start, flags, workspace)
    if workspace.device.type == "cpu":
        workspace.kept_bits.remember(mask, start, flags)
    return flags
