"""SCE: which elements are selected, what the models weigh, whose sign counts."""

from __future__ import annotations

import numpy as np
import pytest

from mergecore.methods.sce import model_weights


def sce(base, models, share):
    """In float64."""
    deltas = np.stack([x - base for x in models])
    if share < 1:
        variances = deltas.var(axis=0)
        k = max(int(np.count_nonzero(variances) * share), 0)
        selected = np.argsort(-variances)[:k]
        deltas = deltas * np.isin(np.arange(base.size), selected)
    squares = (deltas**2).mean(axis=1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else np.full(len(models), 1 / len(models))
    agree = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
    shares = weights[:, None] * agree
    return base + (deltas * shares).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-6)


@pytest.fixture
def models():
    """A base and three models, of 2000 elements. In a half of them all models are the same."""
    generator = np.random.default_rng(7)
    base = generator.normal(size=2000)
    tuned = [base + scale * generator.normal(size=2000) for scale in (0.1, 0.2, 0.4)]
    for model in tuned:
        model[1000:] = tuned[0][1000:]
    return [x.astype(np.float32).astype(np.float64) for x in (base, *tuned)]


@pytest.mark.parametrize("share", [1.5, 1.0, 0.999, 0.5, 0.1, 0.001])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_agrees_with_the_definition(merge_arrays, models, share, m):
    base, tuned = models[0], models[1 : m + 1]
    want = sce(base, tuned, share)
    got = merge_arrays("sce", base, tuned, select_topk=share)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("share", [0.0, -1.0, 0.0009])
def test_nothing_is_selected_by_a_share_of_less_than_one_element(merge_arrays, models, share):
    base, *tuned = models
    np.testing.assert_array_equal(merge_arrays("sce", base, tuned, select_topk=share), base)


def test_models_that_are_the_same_give_the_base(merge_arrays, models):
    """Nothing varies, so nothing is selected; without a selection they give themselves."""
    base, model, *_ = models
    np.testing.assert_array_equal(merge_arrays("sce", base, [model, model], select_topk=0.5), base)
    got = merge_arrays("sce", base, [model, model])
    np.testing.assert_allclose(got, model, rtol=0, atol=1e-6)


def test_the_default_selects_all(merge_arrays, models):
    base, *tuned = models
    np.testing.assert_array_equal(merge_arrays("sce", base, tuned), merge_arrays("sce", base, tuned, select_topk=1.0))


def test_weights_are_shares_of_the_mean_squares():
    assert model_weights([30.0, 10.0], 4) == (0.75, 0.25)


def test_models_that_hardly_change_weigh_the_same():
    assert model_weights([3e-6, 0.9e-6], 4) == (0.5, 0.5)
    assert model_weights([3e-6, 1e-6], 4) == (0.75, 0.25)
    assert model_weights([0.0, 0.0, 0.0], 4) == (1 / 3, 1 / 3, 1 / 3)
