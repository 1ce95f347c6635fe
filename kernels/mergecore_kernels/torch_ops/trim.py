"""Keep the largest magnitudes: TIES' mask."""

from __future__ import annotations

from math import inf

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import HASH_RANGE, Trim
from mergecore_kernels.torch_ops.counter_hash import WORD, hash_offsets, hash_offsets_torch, hash_run
from mergecore_kernels.torch_ops.workspace import Workspace

_FEW = 0.05
"""Share of equals below which they are hashed one by one; above it, hashing all elements is faster."""


def trim(delta: Tensor, mask: Trim, start: int, workspace: Workspace) -> None:
    """Set to +0, in place, all elements whose magnitude, as float32, is below the mask's, and those equal to it whose
    hash is above its cut; then all above its upper magnitude, and those equal to that whose hash is not above its
    upper cut. NaN and Inf are larger than every finite magnitude, but NaN is never left out as an outlier.

    Shapes: delta [n], the elements from `start` on, all within one block of hashes.
    """
    _keep_largest(delta, mask, start, workspace)
    if mask.upper == inf:
        return
    if workspace.use_numpy and delta.dtype == torch.float32:
        _leave_out_outliers_numpy(delta, mask, start, workspace)
    else:
        _leave_out_outliers(delta, mask, start)


def _keep_largest(delta: Tensor, mask: Trim, start: int, workspace: Workspace) -> None:
    if mask.magnitude == inf:
        delta.zero_()
    elif mask.magnitude == 0.0:
        return
    elif workspace.use_numpy and delta.dtype == torch.float32:
        _trim_numpy(delta, mask, start, workspace)
    else:
        magnitude = delta.abs().to(torch.float32)
        equal = magnitude == mask.magnitude
        above_cut = (hash_run(mask.key, start, delta.numel(), workspace).to(torch.int64) & WORD) > mask.hash_cut
        delta.masked_fill_((magnitude < mask.magnitude) | (equal & above_cut), 0.0)


def _trim_numpy(delta: Tensor, mask: Trim, start: int, workspace: Workspace) -> None:
    n = delta.numel()
    # hardshrink keeps what is larger than its bound, so the bound is the number below.
    bound = float(np.nextafter(np.float32(mask.magnitude), np.float32(0)))
    torch.ops.aten.hardshrink.out(delta, bound, out=delta)
    if mask.hash_cut >= HASH_RANGE - 1:
        return
    magnitude = torch.abs(delta, out=workspace.take("magnitude", n, torch.float32)).numpy()
    equal = workspace.take("equal", n, torch.bool).numpy()
    np.equal(magnitude, np.float32(mask.magnitude), out=equal)
    if np.count_nonzero(equal) < n * _FEW:
        ties = np.flatnonzero(equal)
        over = np.flatnonzero(hash_offsets(mask.key, start, ties) > np.uint32(mask.hash_cut))
        delta.numpy()[ties[over]] = 0.0
        return
    np.logical_not(equal, out=equal)
    kept = workspace.take("below", n, torch.bool)
    hashes = hash_run(mask.key, start, n, workspace).numpy().view(np.uint32)
    np.less_equal(hashes, np.uint32(mask.hash_cut), out=kept.numpy())
    np.logical_or(kept.numpy(), equal, out=kept.numpy())
    # The bits times 1 or 0 is several times faster than a boolean mask.
    delta.view(torch.int32).mul_(workspace.take("kept", n, torch.int32).copy_(kept))


def _leave_out_outliers_numpy(delta: Tensor, mask: Trim, start: int, workspace: Workspace) -> None:
    """Looks one by one at what is not below the bound: few elements, as a rule."""
    n = delta.numel()
    magnitude = torch.abs(delta, out=workspace.take("magnitude", n, torch.float32)).numpy()
    reaches = workspace.take("equal", n, torch.bool).numpy()
    np.greater_equal(magnitude, np.float32(mask.upper), out=reaches)
    outliers = np.flatnonzero(reaches)
    equal = outliers[magnitude[outliers] == np.float32(mask.upper)]
    spared = equal[hash_offsets(mask.key, start, equal) > mask.upper_cut]
    values = delta.numpy()
    spared_values = values[spared]
    values[outliers] = 0.0
    values[spared] = spared_values


def _leave_out_outliers(delta: Tensor, mask: Trim, start: int) -> None:
    magnitude = delta.abs().to(torch.float32)
    outlier = magnitude > mask.upper
    equal = torch.nonzero(magnitude == mask.upper).flatten()
    hashes = hash_offsets_torch(mask.key, start, equal.to(torch.int32)).to(torch.int64) & WORD
    outlier[equal] = hashes <= mask.upper_cut
    delta.masked_fill_(outlier, 0.0)
