"""Drop elements at random: DARE's mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import Drop
from mergecore_kernels.torch_ops.counter_hash import hash_run, signed
from mergecore_kernels.torch_ops.workspace import Workspace

_SIGN = -(1 << 31)


def keep_at_random(mask: Drop, start: int, kept: Tensor, workspace: Workspace) -> None:
    """Write to `kept`, bool [n], whether the hash is below the mask's threshold, for the elements from `start` on."""
    hashes = hash_run(mask.key, start, kept.numel(), workspace)
    if workspace.use_numpy:
        np.less(hashes.numpy().view(np.uint32), np.uint32(mask.threshold), out=kept.numpy())
    else:
        # There is no unsigned comparison in torch; with both top bits flipped the signed one gives the same.
        torch.lt(hashes ^ _SIGN, signed(mask.threshold ^ -_SIGN), out=kept)
