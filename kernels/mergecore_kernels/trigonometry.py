"""Arc cosine and sine from + - × ÷ √ alone, so that every machine gives the same bits.

The C library's functions may differ by a unit in the last place from one platform to the next.
"""

from math import pi, sqrt

_ARC_TANGENT_TERMS = 12
_SINE_TERMS = 11
_PI_REST = 1.2246467991473532e-16
"""π less the float64 `pi`."""


def arc_cosine(cosine: float) -> float:
    """The angle in [0, π] whose cosine is given, -1 ≤ cosine ≤ 1."""
    if cosine <= -1.0:
        return pi
    return 2.0 * _arc_tangent(sqrt((1.0 - cosine) / (1.0 + cosine)))


def sine(angle: float) -> float:
    """The sine of an angle. The series is meant for arcs: its error grows with |angle| above π."""
    turns = round(angle / pi)
    x = (angle - turns * pi) - turns * _PI_REST
    square = x * x
    total = 0.0
    for k in range(_SINE_TERMS, 0, -1):  # Horner's scheme of the Taylor series
        total = (total + 1.0) * -square / ((2 * k) * (2 * k + 1))
    value = x * (1.0 + total)
    return -value if turns % 2 else value


def _arc_tangent(x: float) -> float:
    """For x ≥ 0. Two half-angle steps bring x below 0.2, where the odd series converges fast."""
    if x > 1.0:
        return pi / 2.0 - _arc_tangent(1.0 / x)
    for _ in range(2):
        x = x / (1.0 + sqrt(1.0 + x * x))
    square = x * x
    total = 0.0
    for k in range(_ARC_TANGENT_TERMS, 0, -1):
        total = -square * (1.0 / (2 * k + 1) + total)
    return 4.0 * x * (1.0 + total)
