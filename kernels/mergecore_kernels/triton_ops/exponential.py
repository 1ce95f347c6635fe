"""Exponential and logarithm in kernels: the steps of `torch_ops/exponential.py`, which says what they are."""

from __future__ import annotations

import triton
import triton.language as tl

from mergecore_kernels.torch_ops import exponential as twin

_LOG2_E, _ROUNDER = tl.constexpr(twin.LOG2_E), tl.constexpr(twin.ROUNDER)
_LN2_HIGH, _LN2_LOW_SHARE, _LN2 = (tl.constexpr(x) for x in (twin.LN2_HIGH, twin.LN2_LOW_SHARE, twin.LN2))
_GROWTH_TERMS, _LOG_TERMS = tl.constexpr(twin.GROWTH_TERMS), tl.constexpr(twin.LOG_TERMS)
_ONE, _FRACTION = tl.constexpr(twin.ONE), tl.constexpr(twin.FRACTION)


@triton.jit
def exp(
    x,  # float32 [LANES], |x| ≤ 87
):
    """float32 [LANES] e^x"""
    growth, scale = _growth(x)
    return growth * scale + scale


@triton.jit
def exp_minus_1(
    x,  # float32 [LANES], |x| ≤ 87
):
    """float32 [LANES] e^x - 1"""
    growth, scale = _growth(x)
    return growth * scale + (scale - 1.0)


@triton.jit
def log(
    x,  # float32 [LANES], normal and > 0
):
    """float32 [LANES] ln x"""
    bits = x.to(tl.int32, bitcast=True)
    fraction = ((bits & _FRACTION) | _ONE).to(tl.float32, bitcast=True)
    large = fraction > 1.4142135623730951
    fraction = tl.where(large, fraction * 0.5, fraction)
    power = ((bits >> 23) - 127 + large.to(tl.int32)).to(tl.float32)
    s = tl.div_rn(fraction - 1.0, fraction + 1.0)
    return polynomial(s * s, _LOG_TERMS) * s + power * _LN2


@triton.constexpr_function
def _length(terms: tuple[float, ...]) -> int:
    return len(terms)


@triton.jit
def polynomial(x, TERMS: tl.constexpr):
    """By Horner's rule, each product and sum rounded by itself."""
    total = x * TERMS[0] + TERMS[1]
    for i in tl.static_range(2, _length(TERMS)):
        total = total * x + TERMS[i]
    return total


@triton.jit
def _growth(x):
    """e^r - 1 and 2^n"""
    shifted = x * _LOG2_E + _ROUNDER
    power = (shifted - _ROUNDER) * _LN2_HIGH
    rest = x - power - power * _LN2_LOW_SHARE
    scale = ((shifted.to(tl.int32, bitcast=True) << 23) + _ONE).to(tl.float32, bitcast=True)
    return polynomial(rest, _GROWTH_TERMS) * rest, scale
