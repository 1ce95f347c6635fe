"""Random drops."""

import numpy as np
import pytest
import torch

from mergecore_kernels.operations import HASH_RANGE, Drop, Key
from mergecore_kernels.torch_ops import CHUNK
from mergecore_kernels.torch_ops.masks import apply_mask

KEY = Key.of("drop", 5, "model.layers.3.mlp.up_proj.weight", 2)


def dropped(delta, mask, workspace, start=0):
    result = delta.clone()
    for at in range(0, result.numel(), CHUNK):
        apply_mask(result[at : at + CHUNK], mask, start + at, workspace)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "threshold", [0, 1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, HASH_RANGE - 1, HASH_RANGE]
)
@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, 2 * CHUNK + 3])
def test_keeps_hashes_below_the_threshold(workspace, oracle_hash, dtype, threshold, n):
    start = (1 << 32) - CHUNK  # the tensor goes on in the next block of hashes
    delta = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)
    kept = oracle_hash(KEY, np.arange(start, start + n)) < threshold
    got = dropped(delta, Drop(threshold, KEY), workspace, start)
    assert torch.equal(got, torch.where(torch.from_numpy(kept), delta, 0.0))


def test_what_is_dropped_becomes_plus_zero_even_if_not_finite(workspace):
    delta = torch.tensor([-1.0, float("nan"), float("inf"), -0.0]).repeat(1000)
    got = dropped(delta, Drop.keeping(0.5, KEY), workspace)
    finite = torch.isfinite(got)
    zero = got[finite & (got == 0)]
    assert 1000 < zero.numel() < 4000
    assert int(torch.signbit(zero).sum()) < 700  # only the -0 that were kept
    assert 700 < int((~finite).sum()) < 1300


def test_no_mask_keeps_all(workspace):
    delta = torch.randn(100)
    assert torch.equal(dropped(delta, None, workspace), delta)


@pytest.mark.parametrize(
    ("density", "threshold"), [(-1.0, 0), (0.0, 0), (0.5, 1 << 31), (1.0, HASH_RANGE), (2.0, HASH_RANGE)]
)
def test_density_becomes_a_threshold(density, threshold):
    assert Drop.keeping(density, KEY).threshold == threshold
