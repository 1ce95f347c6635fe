"""Arc cosine and sine from + - × ÷ √ alone, so that every machine gives the same bits.

The C library's functions may differ by a unit in the last place from one platform to the next. These take a number or
an array of any shape, and give the same bits for both.
"""

from __future__ import annotations

from math import pi
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers = TypeVar("Numbers", float, NDArray[np.float64])

_ARC_TANGENT_TERMS = 12
_SINE_TERMS = 11
_PI_REST = 1.2246467991473532e-16
"""π less the float64 `pi`."""


def arc_cosine(cosine: Numbers) -> Numbers:
    """The angle in [0, π] whose cosine is given, -1 ≤ cosine ≤ 1."""
    c = np.asarray(cosine)
    with np.errstate(divide="ignore"):  # at -1 it is the arc tangent of infinity
        return _like(cosine, 2.0 * _arc_tangent(np.sqrt((1.0 - c) / (1.0 + c))))


def sine(angle: Numbers) -> Numbers:
    """The sine of an angle. The series is meant for arcs: its error grows with |angle| above π."""
    a = np.asarray(angle)
    turns = np.rint(a / pi)
    x = (a - turns * pi) - turns * _PI_REST
    square = x * x
    total = np.zeros_like(x)
    for k in range(_SINE_TERMS, 0, -1):  # Horner's scheme of the Taylor series
        total = (total + 1.0) * -square / ((2 * k) * (2 * k + 1))
    value = x * (1.0 + total)
    return _like(angle, np.where(turns % 2 == 1, -value, value))


def _arc_tangent(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """For x ≥ 0. Two half-angle steps bring x, or its reciprocal, below 0.2, where the odd series converges fast."""
    steep = x > 1.0
    x = np.where(steep, 1.0 / x, x)
    for _ in range(2):
        x = x / (1.0 + np.sqrt(1.0 + x * x))
    square = x * x
    total = np.zeros_like(x)
    for k in range(_ARC_TANGENT_TERMS, 0, -1):
        total = -square * (1.0 / (2 * k + 1) + total)
    arc = 4.0 * x * (1.0 + total)
    return np.where(steep, pi / 2.0 - arc, arc)


def _like(given: Numbers, result: NDArray[np.float64]) -> Numbers:
    """A number for a number, an array for an array."""
    return float(result) if isinstance(given, float) else result
