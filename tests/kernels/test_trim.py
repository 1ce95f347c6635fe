"""Trims: exactly k elements, whatever the device, tiling or dtype."""

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import HASH_RANGE, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops import CHUNK, Workspace, measure
from mergecore_kernels.torch_ops.masks import apply_mask
from mergecore_kernels.torch_ops.tile import PIECE

KEY = Key.of("trim", 1, "model.norm.weight", 0)
F32, F64 = torch.float32, torch.float64


def trimmed(delta, mask, workspace):
    result = delta.clone()
    for at in range(0, result.numel(), PIECE):
        apply_mask(result[at : at + PIECE], mask, at, workspace)
    return result


def want(delta, mask, oracle_hash):
    magnitude = delta.abs().to(F32).numpy()
    hashes = oracle_hash(mask.key, np.arange(delta.numel()))
    kept = (magnitude > mask.magnitude) | ((magnitude == mask.magnitude) & (hashes <= mask.hash_cut))
    if mask.upper < inf:
        kept &= ~((magnitude > mask.upper) | ((magnitude == mask.upper) & (hashes <= mask.upper_cut)))
    return torch.where(torch.from_numpy(kept | np.isnan(magnitude)), delta, 0.0)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("levels", [2, 7, 100, 100_000], ids=lambda levels: f"{levels} levels")
@pytest.mark.parametrize("hash_cut", [0, 1 << 30, 3 << 30, HASH_RANGE - 1])
def test_keeps_what_the_definition_says(workspace, oracle_hash, dtype, levels, hash_cut):
    """Few levels: many equals, where all hashes of a chunk are computed; many levels: only those of the equals."""
    generator = torch.Generator().manual_seed(levels)
    delta = torch.randint(-levels, levels + 1, (2 * CHUNK + 9,), generator=generator).to(dtype) / levels
    mask = Trim(float(np.float32(((levels + 1) // 2) / levels)), hash_cut, KEY)
    assert torch.equal(trimmed(delta, mask, workspace), want(delta, mask, oracle_hash))


@pytest.mark.parametrize("n", [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 100])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_with_the_kth_magnitude_exactly_k_are_kept(workspace, cut, fine_tunes, n, dtype):
    base, (model,) = fine_tunes(n, (torch.bfloat16, torch.bfloat16), 0.0002)
    base, model = base.to(dtype), model.to(dtype)
    delta = model - base
    nonzero = int(torch.count_nonzero(delta))
    for k in {1, n // 5, n // 2, n - 1} - {0, n}:
        (mask,) = measure(KthMagnitudes((k,), (KEY,)), cut([model], base), workspace)
        assert int(torch.count_nonzero(trimmed(delta, mask, workspace))) == min(k, nonzero)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("upper_cut", [-1, 0, 1 << 31, HASH_RANGE - 1])
def test_leaves_out_outliers(workspace, oracle_hash, dtype, upper_cut):
    delta = torch.randint(-7, 8, (2 * CHUNK + 9,), generator=torch.Generator().manual_seed(3)).to(dtype)
    mask = Trim(2.0, 1 << 30, KEY, 5.0, upper_cut)
    assert torch.equal(trimmed(delta, mask, workspace), want(delta, mask, oracle_hash))


def test_a_band_between_two_ranks_has_their_difference(workspace, cut, fine_tunes):
    """As breadcrumbs wants it: without the 1 % largest, the next 30 %; equals at both ends are counted out."""
    n = CHUNK + 300
    base, (model,) = fine_tunes(n, (torch.bfloat16, torch.bfloat16), 0.0002)
    ranks = KthMagnitudes((n // 100 + n * 3 // 10, n // 100), (KEY, KEY))
    keep, outliers = measure(ranks, cut([model, model], base), workspace)
    mask = Trim(keep.magnitude, keep.hash_cut, KEY, outliers.magnitude, outliers.hash_cut)
    delta = model.float() - base.float()
    band = trimmed(delta, mask, workspace)
    assert int(torch.count_nonzero(band)) == n * 3 // 10
    assert torch.equal(band + trimmed(delta, outliers, workspace), trimmed(delta, keep, workspace))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_infinity_keeps_nothing_and_zero_all(workspace, dtype):
    delta = torch.tensor([0.0, 1e-45, -1.0, float("inf"), float("nan")], dtype=dtype)
    assert torch.count_nonzero(trimmed(delta, Trim(float("inf"), 0, KEY), workspace)) == 0
    kept = trimmed(delta, Trim(0.0, HASH_RANGE - 1, KEY), workspace)
    assert torch.equal(kept.nan_to_num(9.0), delta.nan_to_num(9.0))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_nonfinite_is_kept(workspace, dtype):
    delta = torch.tensor([1.0, float("nan"), -float("nan"), float("inf"), -float("inf"), -5.0], dtype=dtype)
    got = trimmed(delta, Trim(5.0, HASH_RANGE - 1, KEY), workspace)
    assert got[0] == 0
    assert got[5] == -5
    assert torch.isfinite(got).tolist() == [True, False, False, False, False, True]


def test_equals_are_chosen_without_regard_to_their_place(workspace, cut):
    """Of equal deltas each quarter of the tensor keeps its share, within 4.5 standard deviations."""
    n = 4 * CHUNK
    (mask,) = measure(KthMagnitudes((n // 4,), (KEY,)), cut([torch.ones(n)], torch.zeros(n)), workspace)
    per_quarter = trimmed(torch.ones(n), mask, workspace).view(4, -1).sum(1)
    assert ((per_quarter - CHUNK / 4).abs() < 4.5 * (CHUNK * 3 / 16) ** 0.5).all()


@settings(max_examples=100)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3e-45, 3e38]) | st.floats(width=32), max_size=30
    ),
    magnitude=st.sampled_from([1e-45, 3e-45, 1.0, 2.0, 3e38]),
    hash_cut=st.integers(0, HASH_RANGE - 1),
    upper=st.sampled_from([0.0, 1e-45, 1.0, 2.0, 3e38, inf]),
)
def test_any_values(oracle_hash, values, magnitude, hash_cut, upper):
    delta = torch.tensor(values, dtype=F32)
    mask = Trim(float(np.float32(magnitude)), hash_cut, KEY, float(np.float32(upper)), hash_cut // 2)
    expected = want(delta, mask, oracle_hash)
    for use_numpy in (True, False):
        got = trimmed(delta, mask, Workspace("cpu", 0, use_numpy=use_numpy))
        assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
