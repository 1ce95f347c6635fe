"""Does this CPU compute as the operations are defined? A foreign library can switch that off for a whole process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

N = 1031
"""Elements: enough for vector instructions, and a rest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    what: str
    problem: str = ""
    """Empty if all is well."""

    @property
    def passed(self) -> bool:
        return not self.problem


def check_cpu() -> tuple[Finding, ...]:
    """All checks: a few milliseconds."""
    return tuple(Finding(what, "" if check() else problem) for what, check, problem in CHECKS)


def _keeps_subnormals() -> bool:
    small = torch.full((N,), 2.0**-100)
    product = torch.mul(small, 2.0**-30)
    difference = torch.full((N,), 2.0**-126).sub_(2.0**-127)
    by_numpy = small.numpy() * np.float32(2.0**-30)
    half = torch.full((N,), 2.0**-24).to(torch.float16).to(torch.float32)
    return (
        bool((product == 2.0**-130).all())
        and bool((difference == 2.0**-127).all())
        and bool((by_numpy == np.float32(2.0**-130)).all())
        and bool((half == 2.0**-24).all())
    )


def _rounds_products() -> bool:
    """(1 + 2⁻¹²)² is 1 + 2⁻¹¹ after rounding to float32; a fused multiply-add would see the 2⁻²⁴ that is lost."""
    factor = torch.full((N,), 1 + 2.0**-12)
    total = torch.full((N,), -(1 + 2.0**-11))
    total.add_(torch.mul(factor, float(factor[0]), out=torch.empty(N)))
    return bool((total == 0).all())


def _divides_exactly() -> bool:
    """float64 has more than twice float32's digits, so rounding its quotient gives the correctly rounded one."""
    numerators = torch.arange(1, N + 1, dtype=torch.float32)
    divisors = torch.arange(3, 2 * N + 3, 2, dtype=torch.float32)
    return torch.equal(numerators / divisors, (numerators.double() / divisors.double()).float())


def _rounds_to_even() -> bool:
    """Halves between two bfloat16 and between two float16 numbers go to the even one."""
    halves = 1 + (torch.arange(N) % 64 * 2 + 1) * 2.0**-8
    down = ((halves - 1) * 2**7).floor()
    bfloat16 = 1 + (down + down % 2) * 2.0**-7
    float16 = 1 + ((torch.arange(N) % 64 + 1) // 2 * 2) * 2.0**-10
    between = 1 + (torch.arange(N) % 64 * 2 + 1) * 2.0**-11
    return torch.equal(halves.to(torch.bfloat16).float(), bfloat16) and torch.equal(
        between.to(torch.float16).float(), float16
    )


CHECKS: tuple[tuple[str, Callable[[], bool], str], ...] = (
    ("subnormal numbers are kept", _keeps_subnormals, "they are flushed to zero in this process"),
    ("products are rounded before they are added", _rounds_products, "multiply and add are fused"),
    ("divisions are correctly rounded", _divides_exactly, "a quotient is off by a bit"),
    ("casts to 16 bits round to nearest even", _rounds_to_even, "a cast rounds otherwise"),
)
"""What is checked, how, and what is wrong if it fails."""
