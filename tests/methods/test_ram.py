"""RAM and RAM+: what models share is averaged, what one has alone is kept or amplified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore.methods.ramplus_tl import RamPlusParams, unique_scale

UNIT = 2.0**-10


def sparse_models(n, m, seed):
    """A base, and models that differ from it in some elements, as after reinforcement learning; exact in float32."""
    generator = np.random.default_rng(seed)
    base = generator.integers(-1000, 1000, n) * UNIT
    return base, [base + generator.integers(-4, 5, n) * UNIT * generator.integers(0, 2, n) for _ in range(m)]


def ram(base, models, epsilon, r=0.0, alpha=0.0):
    """In float64; with r = 0 without amplification."""
    deltas = np.stack([x - base for x in models])
    active = np.abs(deltas) > epsilon
    count = active.sum(axis=0)
    merged = np.zeros_like(base)
    for delta, mine in zip(deltas, active, strict=True):
        shared, unique = mine & (count > 1), mine & (count == 1)
        ratio = shared.sum() / max(unique.sum(), epsilon)
        merged += np.where(unique, delta * (1 + r * np.clip(ratio, 0, alpha)), 0)
        merged += np.where(shared, delta / np.maximum(count, 1), 0)
    return base + merged


@settings(max_examples=60)
@given(
    n=st.integers(1, 300),
    m=st.integers(1, 4),
    epsilon=st.sampled_from([1e-5, UNIT, 2.5 * UNIT, 10.0]),
    r=st.floats(0, 2),
    alpha=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_definition(merge_arrays, n, m, epsilon, r, alpha, seed):
    base, models = sparse_models(n, m, seed)
    atol = 1e-6 * np.abs(base).max() + 1e-12
    got = merge_arrays("ram", base, models, epsilon=epsilon)
    np.testing.assert_allclose(got, ram(base, models, epsilon), rtol=0, atol=atol)
    got = merge_arrays("ramplus_tl", base, models, epsilon=epsilon, r=r, alpha=alpha)
    np.testing.assert_allclose(got, ram(base, models, epsilon, r, alpha), rtol=0, atol=atol)


def test_by_hand(merge_arrays):
    """The first element is one model's, the second both models', the third nobody's."""
    base, a, b = np.array([1.0, 1.0, 1.0]), np.array([3.0, 3.0, 1.0]), np.array([1.0, 2.0, 1.0])
    np.testing.assert_array_equal(merge_arrays("ram", base, [a, b]), [3.0, 2.5, 1.0])
    np.testing.assert_allclose(merge_arrays("ramplus_tl", base, [a, b], r=0.5, alpha=1.0), [4.0, 2.5, 1.0])


def test_a_delta_must_be_larger_than_epsilon(merge_arrays):
    base, model = np.zeros(3), np.array([0.25, -0.25, 0.26])
    got = merge_arrays("ram", base, [model], epsilon=0.25)
    np.testing.assert_allclose(got, [0.0, 0.0, 0.26], rtol=1e-7)


@pytest.mark.parametrize(
    ("shared", "unique", "scale"),
    [(0, 10, 1.0), (1, 10, 1.01), (2, 10, 1.02), (9, 10, 1.02), (5, 0, 1.02), (0, 0, 1.0)],
)
def test_the_ratio_is_cut_at_alpha(shared, unique, scale):
    assert unique_scale(RamPlusParams(), shared, unique) == pytest.approx(scale)
