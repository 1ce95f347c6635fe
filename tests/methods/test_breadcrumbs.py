"""Breadcrumbs, with and without election: the band of each delta, and what becomes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = (0.7, -0.4, 1.5)


def band(delta, density, gamma):
    """The delta where it is kept: by position in the order of rising magnitudes."""
    if density >= 1:
        return delta
    n = delta.size
    size = max(int(density * n), 0)
    first = max(n - size - int(gamma * n), 0)
    kept = np.argsort(np.abs(delta))[first : first + size]
    masked = np.zeros_like(delta)
    masked[kept] = delta[kept]
    return masked


def summed(base, deltas, weights):
    return base + sum(w * delta for w, delta in zip(weights, deltas, strict=True))


def elected(base, deltas, weights):
    weighted = np.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    sign = np.where(weighted.sum(axis=0) >= 0, 1, -1)
    return base + np.where(np.sign(weighted) == sign, weighted, 0).sum(axis=0)


@pytest.mark.parametrize(("method", "combined"), [("breadcrumbs", summed), ("breadcrumbs_ties", elected)])
@settings(max_examples=60)
@given(
    n=st.integers(1, 300),
    density=st.floats(-0.1, 1.1),
    gamma=st.floats(0, 1.1),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_definition(merge_arrays, unlike_models, method, combined, n, density, gamma, seed):
    base, models = unlike_models(n, 3, seed)
    densities, gammas = (density, 0.5, 0.9), (gamma, 0.05, 0.3)
    deltas = [band(x - base, *settings) for x, *settings in zip(models, densities, gammas, strict=True)]
    want = combined(base, deltas, WEIGHTS)
    got = merge_arrays(method, base, models, weight=WEIGHTS, density=densities, gamma=gammas)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def moved(merge_arrays, base, model, density, gamma):
    """The places that a merge with one model changes."""
    got = merge_arrays("breadcrumbs", base, [model], weight=(1.0,), density=(density,), gamma=(gamma,))
    return set(np.flatnonzero(got != base))


def by_magnitude(base, model):
    """The places, the largest delta first."""
    return list(np.argsort(-np.abs(model - base)))


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_gamma_below_one_element_removes_nothing(merge_arrays, unlike_models, gamma):
    base, (model,) = unlike_models(50, 1)
    assert moved(merge_arrays, base, model, 0.5, gamma) == set(by_magnitude(base, model)[:25])


def test_too_large_a_gamma_keeps_the_smallest(merge_arrays, unlike_models):
    base, (model,) = unlike_models(50, 1)
    assert moved(merge_arrays, base, model, 0.5, 0.7) == set(by_magnitude(base, model)[25:])


def test_a_negative_gamma_keeps_less(merge_arrays, unlike_models):
    base, (model,) = unlike_models(50, 1)
    assert moved(merge_arrays, base, model, 0.5, -0.1) == set(by_magnitude(base, model)[:20])
    assert moved(merge_arrays, base, model, 0.5, -0.9) == set()


@pytest.mark.parametrize("density", [0.0, -1.0, 0.019])
def test_less_than_one_element_keeps_none(merge_arrays, unlike_models, density):
    base, (model,) = unlike_models(50, 1)
    assert moved(merge_arrays, base, model, density, 0.1) == set()


def test_a_density_of_one_keeps_the_outliers_too(merge_arrays, unlike_models):
    base, (model,) = unlike_models(50, 1)
    assert len(moved(merge_arrays, base, model, 1.0, 0.3)) == 50


def test_equal_magnitudes_are_counted_out(merge_arrays):
    """At both ends of the band: 100 of 1000 elements are outliers, 300 are kept, all of them are equal."""
    model = np.random.default_rng(0).choice([-1.0, 1.0], 1000)
    got = merge_arrays("breadcrumbs", np.zeros(1000), [model], weight=(1.0,), density=(0.3,), gamma=(0.1,))
    assert np.count_nonzero(got) == 300


def test_rescale_makes_up_for_the_outliers_too(merge_arrays, unlike_models):
    base, (model,) = unlike_models(200, 1)
    got = merge_arrays("breadcrumbs", base, [model], weight=(1.0,), density=(0.5,), gamma=(0.1,), rescale=True)
    assert np.count_nonzero(got - base) == 100
    assert np.abs(got - base).sum() == pytest.approx(np.abs(model - base).sum(), rel=1e-5)
