"""Multi-SLERP: the mean direction at the mean length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore import PlanError, RunError

WEIGHTS = (0.5, 0.3, 0.7, -0.1, 0.4)


def definition(vectors, weights, normalize=True, eps=1e-8):
    """By the barycentric formula, the step along the tangent included."""
    weights = np.array(weights) / (sum(weights) if normalize else 1)
    lengths = np.array([np.linalg.norm(x) for x in vectors])
    units = [x / (length + eps) for x, length in zip(vectors, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    step = np.linalg.norm(tangent) + eps
    return (mean * np.cos(step) + tangent * np.sin(step) / step) * (weights * lengths).sum()


@settings(max_examples=25)
@given(
    n=st.integers(1, 200),
    m=st.integers(2, 5),
    deltas=st.booleans(),
    normalize=st.booleans(),
    eps=st.sampled_from([1e-8, 1e-4]),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_definition(merge_arrays, n, m, deltas, normalize, eps, seed):
    base, shared, *vectors = np.random.default_rng(seed).standard_normal((m + 2, n))
    # So that the directions don't cancel.
    shared[np.abs(shared) < 1] = 1
    vectors = [x + 4 * shared for x in vectors]
    origin = base if deltas else 0 * base
    want = origin + definition(vectors, WEIGHTS[:m], normalize, eps)
    models = [x + origin for x in vectors]
    got = merge_arrays("multislerp", base if deltas else None, models,
                       weight=WEIGHTS[:m], normalize_weights=normalize, eps=eps)  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_one_model_is_copied(merge_arrays):
    base, x = np.array([1e8, 1.0]), np.array([1.0, 0.1])
    np.testing.assert_array_equal(merge_arrays("multislerp", base, [x], weight=(0.3,)), np.float32(x))


@pytest.mark.parametrize("m", [2, 3])
def test_models_that_are_the_base_give_the_base(merge_arrays, m):
    base = np.array([0.5, -0.25])
    np.testing.assert_array_equal(merge_arrays("multislerp", base, [base] * m, weight=WEIGHTS[:m]), base)


def test_an_unchanged_model_counts_for_the_length_alone(merge_arrays):
    base, a = np.zeros(2), np.array([3.0, 4.0])
    got = merge_arrays("multislerp", base, [a, base, a], weight=(0.25, 0.5, 0.25))
    np.testing.assert_allclose(got, a / 2, rtol=1e-6)


def test_two_opposite_vectors_are_mixed_linearly(merge_arrays):
    a = np.array([3.0, 4.0])
    np.testing.assert_allclose(merge_arrays("multislerp", None, [a, -3 * a], weight=(0.5, 0.5)), -a, rtol=1e-6)


def test_directions_that_cancel(merge_arrays):
    a, b, c = np.array([[2.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    with pytest.raises(RunError, match="a.weight: the weighted directions of the 3 models cancel"):
        merge_arrays("multislerp", None, [a, b, c], weight=(1.0, 1.0, 1.0))


def test_weights_that_cancel(merge_arrays):
    x = np.ones(3)
    with pytest.raises(PlanError, match="the weights 1, -1 add up to 0.*hint: set `normalize_weights: false`"):
        merge_arrays("multislerp", None, [x, 2 * x], weight=(1.0, -1.0))
