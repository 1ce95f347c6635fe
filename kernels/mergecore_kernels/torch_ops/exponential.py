"""Exponential and logarithm in float64 from + - × ÷ alone, so that they have the same bits on every device.

Those of libraries differ in the last place from one to another, and where sums cancel the difference is seen.
"""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor

_LOWEST = -700.0
_LN2_HIGH = 6.93147180369123816490e-01
"""ln 2 in 32 bits: its products with exponents are exact."""
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.44269504088896340736
_EXP_TERMS = tuple(1 / factorial(n) for n in range(13, -1, -1))
"""Of the series of e^r, the last one first. For |r| ≤ ln 2 / 2 the next term is below 2⁻⁵⁶."""
_LOG_TERMS = tuple(2 / n for n in range(23, 0, -2))
"""Of the series of ln((1 + s) / (1 - s)) in s², the last one first. For |s| ≤ 0.172 the next term is below 2⁻⁶¹."""
_ONE = 1023 << 52  # bits of 1.0
_FRACTION = (1 << 52) - 1


def exp(x: Tensor) -> Tensor:
    """float64 [...] e^x for x ≤ 0; as if x were -700 where it is less. Within 2 units of the last place."""
    x = x.clamp(min=_LOWEST)
    power = (x * _LOG2_E).round_()
    rest = (x - power * _LN2_HIGH).sub_(power * _LN2_LOW)
    return _polynomial(rest, _EXP_TERMS).mul_(((power.to(torch.int64) << 52) + _ONE).view(torch.float64))


def log(x: Tensor) -> Tensor:
    """float64 [...] ln x for normal x > 0. Within 2 units of the last place. NaN and Inf give NaN."""
    bits = x.view(torch.int64)
    fraction = ((bits & _FRACTION) | _ONE).view(torch.float64)
    large = (fraction > 2**0.5).to(torch.int64)
    # From [√½, √2], so that near 1 nothing cancels.
    fraction = fraction.mul(1.0 - 0.5 * large)
    power = ((bits >> 52) - 1023 + large).to(torch.float64)
    s = (fraction - 1.0).div_(fraction + 1.0)
    near = _polynomial(s * s, _LOG_TERMS).mul_(s)
    return near.add_(power * _LN2_LOW).add_(power * _LN2_HIGH).add_(x - x)


def _polynomial(x: Tensor, terms: tuple[float, ...]) -> Tensor:
    """By Horner's rule, each product and sum rounded by itself."""
    total = torch.full_like(x, terms[0])
    for term in terms[1:]:
        total.mul_(x).add_(term)
    return total
