"""Counting NaN and Inf."""

import pytest
import torch

from mergecore_kernels.torch_ops import count_nonfinite

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_each_kind_is_seen_alone(dtype, special):
    x = torch.randn(1000).to(dtype)
    x[617] = special
    assert count_nonfinite(x) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_finite_numbers_are_not_counted(dtype):
    limits = torch.finfo(dtype)
    x = torch.tensor([limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, -0.0], dtype=dtype)
    assert count_nonfinite(x) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_exact(dtype):
    x = torch.randn(7000).to(dtype)
    x[::7] = float("nan")
    x[3::7] = -float("inf")
    assert count_nonfinite(x) == 2000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern_of_nan(dtype):
    """With any payload and sign."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    infinity = torch.tensor(float("inf"), dtype=dtype).view(bits)
    negative = torch.tensor(-float("inf"), dtype=dtype).view(bits)
    for pattern in (infinity + 1, negative + 1, torch.tensor(-1, dtype=bits), torch.tensor(torch.iinfo(bits).max)):
        assert count_nonfinite(pattern.to(bits).reshape(1).view(dtype)) == 1


def test_empty():
    assert count_nonfinite(torch.empty(0)) == 0
