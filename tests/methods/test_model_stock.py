"""Model Stock: how far from the base to the average, whole or row by row."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergecore import PlanError, merge, plan


def definition(base, models, axes):
    """By the formula, in float64; one vector lies along the axes."""
    deltas = [x - base for x in models]
    n = len(deltas)
    lengths = [np.sqrt((d * d).sum(axes, keepdims=True)) for d in deltas]
    cosines = [
        np.clip((deltas[i] * deltas[j]).sum(axes, keepdims=True) / np.maximum(lengths[i] * lengths[j], 1e-6), -1, 1)
        for i, j in combinations(range(n), 2)
    ]
    cosine = np.mean(cosines, axis=0)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(models, axis=0) + (1 - t) * base


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(30,), (7, 9), (1, 5), (3, 4, 5)]),
    m=st.integers(2, 5),
    filter_wise=st.booleans(),
    agreement=st.sampled_from([0.0, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_definition(merge_arrays, shape, m, filter_wise, agreement, seed):
    base, shared, *noise = np.random.default_rng(seed).standard_normal((m + 2, *shape))
    # A common part, so that t is far from its pole.
    models = [base + x + (3 + agreement) * np.sign(shared) for x in noise]
    axes = (-1,) if filter_wise else tuple(range(len(shape)))
    want = definition(base, models, axes)
    got = merge_arrays("model_stock", base, models, filter_wise=filter_wise)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_models_that_agree_give_their_average(merge_arrays):
    base, delta = np.array([1.0, 2.0]), np.array([0.5, -0.25])
    np.testing.assert_allclose(merge_arrays("model_stock", base, [base + delta, base + 3 * delta]), base + 2 * delta)


def test_perpendicular_and_zero_deltas_give_the_base(merge_arrays):
    base = np.array([1.0, 2.0])
    for b in (np.array([0.0, 3.0]), np.zeros(2)):
        got = merge_arrays("model_stock", base, [base + np.array([1.0, 0.0]), base + b])
        np.testing.assert_array_equal(got, base)


def test_deltas_that_disagree_lead_away(merge_arrays):
    """cos = -0.6: t = -1.2 / 0.4 = -3."""
    base, a, b = np.zeros(2), np.array([1.0, 0.0]), np.array([-0.6, 0.8])
    np.testing.assert_allclose(merge_arrays("model_stock", base, [a, b]), -3 * (a + b) / 2, rtol=1e-5)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposite_deltas_keep_the_base(merge_arrays, filter_wise):
    base, delta = np.ones((2, 3)), np.array([[1.0, 2.0, 3.0]] * 2)
    got = merge_arrays("model_stock", base, [base + delta, base - delta], filter_wise=filter_wise)
    np.testing.assert_array_equal(got, base)


def test_needs_two_models_beside_the_base(make_model, tmp_path: Path):
    base, a = (str(make_model(name, seed=i)) for i, name in enumerate(("base", "a")))
    with pytest.raises(PlanError, match="`model_stock` takes at least 3 models, found 2: "):
        merge({"merge_method": "model_stock", "base_model": base, "models": [{"model": a}]}, tmp_path / "no", workers=0)


def test_optional_tensors_that_few_models_have(make_model, llama, tmp_path: Path):
    """The base's are copied, with a note; without the base it is an error."""
    name, bias = "model.layers.0.self_attn.q_proj.bias", llama()["model.norm.weight"]
    plain, other = str(make_model("plain", seed=1)), str(make_model("other", seed=2))
    biased, biased_too = (str(make_model(n, llama(seed=3 + i) | {name: bias + i})) for i, n in enumerate(("b0", "b1")))
    source = {"merge_method": "model_stock"}
    for models in ([plain, biased_too], [plain, other]):
        config = source | {"base_model": biased, "models": [{"model": m} for m in models]}
        note = f"fewer than 3 models have 1 optional tensors, which are copied from the base: {name}"
        assert note in plan(config).notes
        merge(config, tmp_path / "out", workers=0, overwrite=True)
        assert load_file(tmp_path / "out" / "model.safetensors")[name].equal(bias)
    with pytest.raises(PlanError, match=f"plain: lacks the tensor `{name}`"):
        merge(
            source | {"base_model": plain, "models": [{"model": biased}, {"model": biased_too}]},
            tmp_path / "no",
            workers=0,
        )
