"""The Karcher mean, computed among the dot products, against vectors in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def definition(vectors, max_iter=10, tol=1e-5):
    """The iteration on whole vectors."""
    lengths = np.array([np.linalg.norm(x) for x in vectors])
    units = [x / length for x, length in zip(vectors, lengths, strict=True) if length > tol]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for u in units:
            cosine = np.clip((u * mean).sum(), -1, 1)
            angle = np.arccos(cosine)
            if angle >= tol:
                tangent += angle / np.sin(angle) * (u - cosine * mean) / len(units)
        step = np.linalg.norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean /= np.linalg.norm(mean)
    return lengths.mean() * mean


@settings(max_examples=25)
@given(
    n=st.integers(2, 300),
    m=st.integers(2, 5),
    max_iter=st.integers(0, 30),
    spread=st.sampled_from([1e-3, 0.5, 2.0]),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_definition(merge_arrays, n, m, max_iter, spread, seed):
    shared, *noise = np.random.default_rng(seed).standard_normal((m + 1, n))
    # One long common part, so that no direction is opposite to the mean.
    shared[0] = 6 * spread + 1
    vectors = [np.float32(shared + spread * x).astype(float) for x in noise]
    want = definition(vectors, max_iter)
    np.testing.assert_allclose(
        merge_arrays("karcher", None, vectors, max_iter=max_iter), want, rtol=0, atol=2e-5 * np.abs(want).max()
    )


def test_the_arcs_to_the_models_cancel(merge_arrays):
    vectors = list(np.random.default_rng(0).standard_normal((3, 50)) + 1)
    mean = merge_arrays("karcher", None, vectors, max_iter=50, tol=1e-9)
    mean /= np.linalg.norm(mean)
    arcs = 0
    for x in vectors:
        cosine = (x @ mean) / np.linalg.norm(x)
        arcs = arcs + np.arccos(cosine) / np.sqrt(1 - cosine**2) * (x / np.linalg.norm(x) - cosine * mean)
    assert np.linalg.norm(arcs) < 1e-6


def test_one_model_is_copied(merge_arrays):
    x = np.float32([0.1, 1e-9])
    np.testing.assert_array_equal(merge_arrays("karcher", None, [x]), x)


def test_opposite_models_give_the_first_direction(merge_arrays):
    a = np.array([3.0, 4.0])
    np.testing.assert_allclose(merge_arrays("karcher", None, [a, -3 * a]), 2 * a, rtol=1e-6)


def test_short_tensors_count_for_the_length_alone(merge_arrays):
    a = np.array([3.0, 4.0])
    np.testing.assert_allclose(merge_arrays("karcher", None, [0 * a, a]), a / 2, rtol=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-6])
def test_only_short_tensors_give_zeros(merge_arrays, length):
    a = np.array([length, 0.0])
    np.testing.assert_array_equal(merge_arrays("karcher", None, [a, a]), 0 * a)
