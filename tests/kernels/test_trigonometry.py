"""Arc cosine and sine from + - × ÷ √, against the C library's."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mergecore_kernels.trigonometry import arc_cosine, sine

EPS = 2.0**-52


@given(st.floats(-1, 1))
def test_arc_cosine(cosine: float) -> None:
    assert math.isclose(arc_cosine(cosine), math.acos(cosine), rel_tol=8 * EPS)


@given(st.floats(0, math.pi))
def test_sine_of_an_arc(angle: float) -> None:
    assert abs(sine(angle) - math.sin(angle)) <= 4 * EPS * max(math.sin(angle), EPS)


@given(st.floats(-50, 50))
def test_sine_beyond_an_arc(angle: float) -> None:
    assert abs(sine(angle) - math.sin(angle)) <= 40 * EPS


def test_ends() -> None:
    assert (arc_cosine(1.0), arc_cosine(-1.0), sine(0.0)) == (0.0, math.pi, 0.0)


def test_golden_bits() -> None:
    """The same on every machine, or merges differ."""
    assert [arc_cosine(c).hex() for c in (0.3, -0.99)] == GOLDEN[:2]
    assert [sine(a).hex() for a in (0.3, 2.5)] == GOLDEN[2:]


@given(st.lists(st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=1))
def test_arrays_have_the_bits_of_numbers(values: list[float]) -> None:
    array = np.array(values)
    assert arc_cosine(array).tolist() == [arc_cosine(value) for value in values]
    assert sine(7 * array).tolist() == [sine(7 * value) for value in values]
    assert isinstance(arc_cosine(0.5), float)


GOLDEN = ["0x1.441f5ecbeef59p+0", "0x1.8001be1bc011bp+1", "0x1.2e9cd95baba33p-2", "0x1.326af0dcfcab0p-1"]
