"""Loads are exact, and stores round once."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergecore_kernels.torch_ops.arithmetic import load, load_delta, rounded, store


def stored(value, dtype, compute=torch.float64):
    out = torch.full((1,), float("nan"), dtype=dtype)
    store(torch.tensor([value], dtype=compute), out)
    return float(out)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (1 + 2.0**-8, 1.0),  # a tie goes to even
        (1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-7),  # float32 would round this to the tie first
        (1 + 3 * 2.0**-8 - 2.0**-40, 1 + 2.0**-7),
        (-1 - 2.0**-8 - 2.0**-40, -1 - 2.0**-7),
        (0.0, 0.0),
        (float("inf"), float("inf")),
        (1e300, float("inf")),
    ],
)
def test_float64_is_rounded_to_bfloat16_once(value, want):
    assert stored(value, torch.bfloat16) == want


@given(st.floats(-60000, 60000), st.sampled_from([torch.float16, torch.bfloat16]))
def test_no_other_16_bit_number_is_nearer(value, dtype):
    got = torch.tensor(stored(value, dtype), dtype=dtype)
    error = abs(Fraction(float(got)) - Fraction(value))
    for direction in (-float("inf"), float("inf")):
        neighbour = torch.nextafter(got, torch.tensor(direction, dtype=dtype))
        if torch.isfinite(neighbour):
            assert error <= abs(Fraction(float(neighbour)) - Fraction(value))


@pytest.mark.parametrize("value", [5e-324, -5e-324, 2.0**-150, -(2.0**-135), -0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_underflow_keeps_the_sign(value, dtype):
    out = torch.empty(1, dtype=dtype)
    store(torch.tensor([value], dtype=torch.float64), out)
    assert float(out) == 0.0
    assert bool(torch.signbit(out)) == bool(torch.signbit(torch.tensor(value, dtype=torch.float64)))


def test_nan_stays_nan():
    assert stored(float("nan"), torch.bfloat16) != stored(float("nan"), torch.bfloat16)


def test_weights_are_rounded_once():
    assert rounded(0.1, torch.float32) == float(torch.tensor(0.1, dtype=torch.float32))
    assert rounded(0.1, torch.float64) == 0.1
    assert rounded(1e300, torch.float32) == float("inf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_loads_are_exact(dtype):
    x, base = torch.randn(2, 1000).to(dtype)
    for compute in (torch.float32, torch.float64):
        assert torch.equal(load(x, torch.empty(1000, dtype=compute)), x.to(compute))
        got = load_delta(x, base.to(compute), torch.empty(1000, dtype=compute))
        assert torch.equal(got, x.to(compute) - base.to(compute))
