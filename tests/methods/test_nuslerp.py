"""NuSLERP: the arc between two vectors, in each view of a tensor."""

from __future__ import annotations

from math import acos, cos, sin
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergecore import PlanError, merge
from mergecore.methods.nuslerp import arc_weights, position

VIEWS = {
    # parameters: the axes that make up one vector, of a tensor with three
    "tensor": ({}, (0, 1, 2)),
    "rows": ({"nuslerp_flatten": False}, (2,)),
    "columns": ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, (0,)),
}


def normal(shape, m, seed):
    return list(np.random.default_rng(seed).standard_normal((m, *shape)))


def definition(a, b, t, axes):
    """By the formula, in float64."""
    lengths = [np.maximum(np.sqrt((x * x).sum(axes, keepdims=True)), 1e-7) for x in (a, b)]
    cosine = np.clip((a * b).sum(axes, keepdims=True) / lengths[0] / lengths[1], -1, 1)
    angle = np.arccos(cosine)
    with np.errstate(all="ignore"):
        arc = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return np.where(np.abs(cosine) > 1 - 1e-5, (1 - t) * a + t * b, arc)


@settings(max_examples=25)
@given(
    view=st.sampled_from(sorted(VIEWS)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9)),
    weights=st.sampled_from([(0.7, 0.3), (2.0, 1.0), (1.5, -0.5), (0.5, -0.5)]),
    deltas=st.booleans(),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_definition(merge_arrays, view, shape, weights, deltas, seed):
    parameters, axes = VIEWS[view]
    base, a, b = normal(shape, 3, seed)
    # So that no two vectors are nearly opposite, where the result is as unsure as the cosine.
    b += 1.5 * a
    origin = base if deltas else 0 * base
    want = origin + definition(a, b, position(weights), axes)
    got = merge_arrays("nuslerp", base if deltas else None, [a + origin, b + origin], weight=weights, **parameters)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-4 * np.abs(want).max())


@pytest.mark.parametrize("parameters", [view for view, _ in VIEWS.values()])
def test_a_vector_is_one_vector_in_every_view(merge_arrays, parameters):
    a, b = normal((50,), 2, 0)
    got = merge_arrays("nuslerp", None, [a, b], weight=(0.7, 0.3), **parameters)
    np.testing.assert_allclose(got, definition(a, b, 0.3, (0,)), atol=1e-6)


@given(st.floats(0.01, 3.1), st.floats(0, 1))
def test_weights_of_an_arc(angle, t):
    for first, second in (arc_weights(np.array([[1.0, cos(angle)], [cos(angle), 1.0]]), t),):
        assert first * first + second * second + 2 * first * second * cos(angle) == pytest.approx(1, abs=1e-9)
        assert first == pytest.approx(sin((1 - t) * acos(cos(angle))) / sin(angle), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cosine", [1.0, 1 - 1e-7, -1 + 1e-7, -1.0, -1.0000001])
def test_parallel_and_opposite_vectors_are_mixed_linearly(cosine):
    first, second = arc_weights(np.array([[1.0, cosine], [cosine, 1.0]]), 0.3)
    assert (first, second) == (0.7, 0.3)


def test_opposite_vectors_stay_small(merge_arrays):
    a = np.array([1.0, 2.0])
    np.testing.assert_allclose(merge_arrays("nuslerp", None, [a, -2 * a], weight=(0.7, 0.3)), 0.1 * a, rtol=1e-6)


def test_zeros_are_perpendicular(merge_arrays):
    a, zeros = np.array([[1.0, 2.0], [0.0, 0.0]]), np.zeros((2, 2))
    got = merge_arrays("nuslerp", None, [a, zeros], weight=(0.75, 0.25), nuslerp_flatten=False)
    np.testing.assert_allclose(got, sin(0.75 * np.pi / 2) * a, rtol=1e-6)


@pytest.mark.parametrize(("weights", "t"), [((3.0, 1.0), 0.25), ((1e-7, -1e-7), 0.5), ((0.0, 2.0), 1.0)])
def test_position(weights, t):
    assert position(weights) == t


@pytest.mark.parametrize("based", [False, True], ids=["weights", "deltas"])
def test_takes_two_models_beside_the_base(make_model, tmp_path: Path, based):
    base, *models = (str(make_model(name, seed=i)) for i, name in enumerate(("base", "a", "b", "c")))
    source = {"merge_method": "nuslerp", "parameters": {"weight": 1}} | ({"base_model": base} if based else {})
    beside = " beside the base" if based else ""
    for count in (1, 3):
        with pytest.raises(PlanError, match=f"`nuslerp` takes 2 models{beside}, found {count}: "):
            merge(source | {"models": [{"model": m} for m in models[:count]]}, tmp_path / "no", workers=0)
    merge(source | {"models": [{"model": m} for m in models[:2]]}, tmp_path / "out", workers=0)


def test_optional_tensors(make_model, llama, tmp_path: Path):
    """One that only one model has is copied, with two of three it is an error."""
    name, bias = "model.layers.0.self_attn.q_proj.bias", llama()["model.norm.weight"]
    plain, other = str(make_model("plain", seed=1)), str(make_model("other", seed=2))
    biased, biased_too = (str(make_model(n, llama(seed=i) | {name: bias})) for i, n in enumerate(("b1", "b2")))
    source = {"merge_method": "nuslerp", "parameters": {"weight": 1}}
    for models in ((plain, biased, other), (biased, plain, other), (plain, biased)):
        settings = {"models": [{"model": m} for m in models[:2]]} | ({"base_model": models[2]} if models[2:] else {})
        merge(source | settings, tmp_path / "out", workers=0, overwrite=True)
        assert load_file(tmp_path / "out" / "model.safetensors")[name].equal(bias)
    for models in ((biased, biased_too, plain), (plain, biased, biased_too)):
        with pytest.raises(PlanError, match=f"plain: lacks the tensor `{name}`"):
            merge(
                source | {"models": [{"model": m} for m in models[:2]], "base_model": models[2]},
                tmp_path / "no",
                workers=0,
            )
