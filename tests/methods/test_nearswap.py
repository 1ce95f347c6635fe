"""NearSwap: elements near the base are the other model's, and no element moves further than t."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergecore import PlanError, merge

VALUES = st.floats(-1, 1, width=32)


@settings(max_examples=100)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=50), st.floats(0, 1))
def test_agrees_with_the_definition(merge_arrays, pairs, t):
    base, model = np.array(pairs).T
    share = np.minimum(t / np.maximum(np.abs(base - model), 1e-6), 1)
    got = merge_arrays("nearswap", base, [model], t=t)
    np.testing.assert_allclose(got, share * model + (1 - share) * base, rtol=0, atol=1e-6)
    assert (np.abs(got - base) <= t + 1e-6).all()


def test_near_elements_are_swapped_and_others_move_by_t(merge_arrays):
    base, model = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.1, -0.5, 2.0, 1.0])
    np.testing.assert_allclose(merge_arrays("nearswap", base, [model], t=0.5), [0.1, -0.5, 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, -1.0])
def test_without_a_distance_the_base_stays(merge_arrays, t):
    base, model = np.array([0.25, 0.5]), np.array([0.25, -1.0])
    np.testing.assert_array_equal(merge_arrays("nearswap", base, [model], t=t), base)


def test_takes_exactly_one_model_beside_the_base(make_model, tmp_path: Path):
    base, a, b = (str(make_model(name, seed=i)) for i, name in enumerate(("base", "a", "b")))
    source = {"merge_method": "nearswap", "base_model": base, "parameters": {"t": 0.1}}
    with pytest.raises(PlanError, match="`nearswap` takes 2 models, found 3: "):
        merge(source | {"models": [{"model": a}, {"model": b}]}, tmp_path / "out", workers=0)
    with pytest.raises(PlanError, match="`nearswap` takes 2 models, found 1: "):
        merge(source | {"models": [{"model": base}]}, tmp_path / "out", workers=0)


def test_a_tensor_of_the_base_alone_is_copied_and_one_of_the_other_is_an_error(make_model, llama, tmp_path: Path):
    name, bias = "model.layers.0.self_attn.q_proj.bias", llama()["model.norm.weight"]
    plain, biased = str(make_model("plain", seed=1)), str(make_model("biased", llama() | {name: bias}))
    source = {"merge_method": "nearswap", "parameters": {"t": 0.1}}
    merge(source | {"base_model": biased, "models": [{"model": plain}]}, tmp_path / "out", workers=0)
    assert load_file(tmp_path / "out" / "model.safetensors")[name].equal(bias)
    with pytest.raises(PlanError, match=f"plain: lacks the tensor `{name}`"):
        merge(source | {"base_model": plain, "models": [{"model": biased}]}, tmp_path / "no", workers=0)
