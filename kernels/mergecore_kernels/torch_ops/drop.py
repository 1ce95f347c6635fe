"""Drop elements at random: DARE's mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Drop
from mergecore_kernels.torch_ops.arithmetic import BITS
from mergecore_kernels.torch_ops.counter_hash import hash_run, signed
from mergecore_kernels.torch_ops.workspace import Workspace

_SIGN = -(1 << 31)


def drop(delta: Tensor, mask: Drop, start: int, workspace: Workspace) -> None:
    """Set the elements of `delta` whose hash is at or above the threshold to +0, in place.

    Shapes: delta [n], the elements from `start` on.
    """
    if mask.threshold >= HASH_RANGE:
        return
    if mask.threshold <= 0:
        delta.zero_()
        return
    integers = BITS[delta.dtype]
    n = delta.numel()
    hashes = hash_run(mask.key, start, n, workspace)
    kept = workspace.take("kept", n, integers)
    if workspace.use_numpy:
        below = workspace.take("below", n, torch.bool)
        np.less(hashes.numpy().view(np.uint32), np.uint32(mask.threshold), out=below.numpy())
        kept.copy_(below)
    else:
        # There is no unsigned comparison in torch; with both top bits flipped the signed one gives the same.
        kept.copy_((hashes ^ _SIGN) < signed(mask.threshold ^ -_SIGN))
    # The bits times 1 or 0: several times faster than a boolean mask, and a dropped NaN or Inf is gone.
    delta.view(integers).mul_(kept)
