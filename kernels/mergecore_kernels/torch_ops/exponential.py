"""Exponential and logarithm in float32 from + - × ÷ and bit operations alone: the same bits on every device.

Those of libraries differ in the last place from one to another.

e^x = 2^n · e^r with n = round(x / ln 2), so that |r| ≤ ln 2 / 2; e^r - 1 is summed as a series. n is taken from the
last bits of x / ln 2 + ROUNDER, where floats lie 1 apart.
"""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor

LOG2_E = 1.44269504088896340736
ROUNDER = 1.5 * 2.0**23
"""A float32 that is rounded to an integer when something small is added. The low 9 bits of it are zero."""
LN2_HIGH = 0.693359375
"""ln 2 in 9 bits: its products with n are exact."""
LN2_LOW_SHARE = -2.12194440054690583e-4 / LN2_HIGH
"""(ln 2 - LN2_HIGH) / LN2_HIGH"""
UNREDUCED = 0.34
"""Up to this magnitude n is 0 and r is x."""
GROWTH_TERMS = tuple(1 / factorial(n) for n in range(7, 0, -1))
"""Of the series of (e^r - 1) / r, the last one first. The next term is below 2⁻²⁵."""
LOG_TERMS = tuple(2 / n for n in range(9, 0, -2))
"""Of the series of ln((1 + s) / (1 - s)) / s in s², the last one first. For |s| ≤ 0.172 the next one is below 2⁻²⁷."""
LN2 = 0.693147180559945309417
ONE = 127 << 23  # bits of 1.0
FRACTION = (1 << 23) - 1


def exp(x: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """float32 [...] out = e^x for |x| ≤ 87, within 2 units of the last place. All three are overwritten."""
    if _growth(x, out, scratch):
        return out.mul_(scratch).add_(scratch)
    return out.add_(1.0)


def exp_minus_1(x: Tensor, out: Tensor, scratch: Tensor) -> Tensor:
    """float32 [...] out = e^x - 1 for |x| ≤ 87, within 3 units of the last place. All three are overwritten."""
    if _growth(x, out, scratch):
        out.mul_(scratch).add_(scratch.sub_(1.0))
    return out


def log(x: Tensor) -> Tensor:
    """float32 [...] ln x for normal x > 0, within 4 units of the last place but near 1."""
    bits = x.view(torch.int32)
    fraction = ((bits & FRACTION) | ONE).view(torch.float32)
    large = (fraction > 2**0.5).to(torch.int32)
    # From [√½, √2], so that the series is short.
    fraction = fraction * (1.0 - 0.5 * large)
    power = ((bits >> 23) - 127 + large).to(torch.float32)
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    return polynomial(square, LOG_TERMS, torch.empty_like(square)).mul_(s).add_(power * LN2)


def polynomial(x: Tensor, terms: tuple[float, ...], out: Tensor) -> Tensor:
    """By Horner's rule, each product and sum rounded by itself. Not in place."""
    torch.mul(x, terms[0], out=out).add_(terms[1])
    for term in terms[2:]:
        out.mul_(x).add_(term)
    return out


def _growth(x: Tensor, out: Tensor, scale: Tensor) -> bool:
    """out = e^r - 1 and scale = 2^n. False if n is 0 everywhere: `scale` isn't written then."""
    least, most = torch.aminmax(x) if x.numel() else (0.0, 0.0)
    reduced = not (least >= -UNREDUCED and most <= UNREDUCED)  # so if there is a NaN
    if reduced:
        torch.mul(x, LOG2_E, out=scale).add_(ROUNDER)
        torch.sub(scale, ROUNDER, out=out)
        x.sub_(out.mul_(LN2_HIGH)).sub_(out.mul_(LN2_LOW_SHARE))
        scale.view(torch.int32).bitwise_left_shift_(23).add_(ONE)
    polynomial(x, GROWTH_TERMS, out).mul_(x)
    return reduced
