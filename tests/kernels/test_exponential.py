"""Exponential and logarithm: close to the exact values, and the same bits as the formula with every step rounded."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mergecore_kernels.torch_ops import exponential
from mergecore_kernels.torch_ops.exponential import LOG_TERMS, exp, exp_minus_1, log

F32 = torch.float32
FUNCTIONS = {
    "exp": (exp, math.exp, 2),
    "exp_minus_1": (exp_minus_1, math.expm1, 3),
}


def values(low, high, n=4001, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, generator=generator)


def applied(function, x):
    """The argument stays as it is."""
    return function(x.clone(), torch.empty_like(x), torch.empty_like(x))


def worst_ulps(got, want):
    """Units of the last place of float32. Half of one is the rounding to float32."""
    return max(abs(a - b) / float(np.spacing(np.float32(abs(b)))) for a, b in zip(got.tolist(), want, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("low", "high"), [(-80, 80), (-40, 0), (-1, 1), (-0.4, 0.4), (-0.3, 0.3), (-1e-9, 1e-9)])
def test_powers_are_close(name, low, high):
    function, exact, ulps = FUNCTIONS[name]
    x = values(low, high)
    assert worst_ulps(applied(function, x), [exact(v) for v in x.tolist()]) <= ulps


@pytest.mark.parametrize(("low", "high"), [(1e-8, 1e-6), (0.01, 0.67), (1.5, 4.0), (1.0, 1e9)])
def test_log_is_close(low, high):
    x = values(low, high)
    assert worst_ulps(log(x), [math.log(v) for v in x.tolist()]) <= 4


def test_log_near_one_is_absolutely_close():
    x = values(0.66, 1.51)
    assert (log(x).to(torch.float64) - x.to(torch.float64).log()).abs().max() <= 2**-24


def test_special_values():
    one, nan = torch.ones(1), torch.full((1,), math.nan)
    assert applied(exp, 0 * one).item() == 1.0
    assert applied(exp_minus_1, 0 * one).item() == 0.0
    assert log(one).item() == 0.0
    assert all(applied(function, nan).isnan().all() for function in (exp, exp_minus_1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_small_arguments_take_a_shorter_way_to_the_same_bits(name, monkeypatch):
    function, _, _ = FUNCTIONS[name]
    x = values(-exponential.UNREDUCED, exponential.UNREDUCED)
    short = applied(function, x)
    monkeypatch.setattr(exponential, "UNREDUCED", 0.0)
    assert torch.equal(applied(function, x), short)


def test_every_step_is_rounded_by_itself():
    """The same formula, step by step in exact fractions, each rounded to float32."""

    def rounded(value):
        return Fraction(float(np.float32(float(value))))

    terms = [rounded(term) for term in LOG_TERMS]
    for x in values(0.75, 1.4, 200).tolist():
        s = rounded(rounded(Fraction(x) - 1) / rounded(Fraction(x) + 1))
        square, total = rounded(s * s), terms[0]
        for term in terms[1:]:
            total = rounded(rounded(total * square) + term)
        assert log(torch.tensor([x])).item() == float(rounded(total * s))


def test_length_and_offset_change_no_bits():
    """Vector registers and what is left over at the end give the same."""
    x = values(-30.0, 0.0, 1003)
    for function in (lambda v: applied(exp, v), lambda v: applied(exp_minus_1, v), lambda v: log(-v)):
        single = torch.cat([function(x[i : i + 1].clone()) for i in range(0, 1003, 17)])
        assert torch.equal(single, function(x)[::17])
