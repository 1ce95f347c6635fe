"""Arcee Fusion, against its definition in numpy: what is important is taken as it is, the rest is the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mergecore import PlanError, merge, methods
from mergecore.methods import Target
from mergecore_kernels.operations import TakeImportant


def importance(base, x):
    """In float64, of arrays whose last axis is that of the rows."""

    def probabilities(values):
        powers = np.exp(values - values.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True) + 1e-8

    p, q = probabilities(x), probabilities(base)
    return np.abs(x - base) * (p * np.log(p / q)).sum(-1, keepdims=True)


def fused(base, x):
    """The definition, and which elements lie too near the threshold for float32."""
    values = importance(base, x)
    ordered = np.sort(values, axis=None)
    lower, median, upper = (ordered[int(f * (values.size - 1))] for f in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (upper - lower)
    return np.where(values >= threshold, x, base), np.abs(values - threshold) <= 1e-5 * threshold


def models(shape, spread, seed=0):
    generator = np.random.default_rng(seed)
    base = generator.normal(0, 0.02, shape).astype(np.float32).astype(np.float64)
    return base, (base + generator.normal(0, spread, shape)).astype(np.float32).astype(np.float64)


@settings(max_examples=50)
@given(
    shape=st.sampled_from([(1,), (5,), (300,), (4, 3), (40, 50), (70, 64), (3, 20, 30), (6, 1)]),
    spread=st.sampled_from([0.001, 0.01, 1.0]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_definition(merge_arrays, shape, spread, seed):
    base, x = models(shape, spread, seed)
    want, near = fused(base, x)
    got = merge_arrays("arcee_fusion", base, [x])
    assert near.mean() <= 0.01 or near.size < 50 or shape[-1] == 1
    assert ((got == want) | near).all()
    assert ((got == base) | (got == x)).all()


def test_takes_some_per_cent(merge_arrays):
    base, x = models((300, 400), 0.001)
    assert 0.02 < (merge_arrays("arcee_fusion", base, [x]) != base).mean() < 0.08


def test_equal_models_stay(merge_arrays):
    base, _ = models((30, 40), 0.0)
    np.testing.assert_array_equal(merge_arrays("arcee_fusion", base, [base]), base)


def test_rows_without_divergence_are_taken_whole(merge_arrays):
    """With one element per row every importance is 0, which is not below the threshold."""
    base, x = models((50, 1), 0.01)
    np.testing.assert_array_equal(merge_arrays("arcee_fusion", base, [x]), x)


def test_the_recipe():
    target = Target("a.weight", 12, (1,), None, seed=0, shape=(4, 3))
    recipe = methods.get("arcee_fusion").recipe(methods.get("arcee_fusion").example, target)
    question = next(recipe)
    assert (question.fractions, question.columns, question.n) == ((0.25, 0.5, 0.75), 3, 12)
    rows = np.zeros(4, np.float32)
    with pytest.raises(StopIteration) as end:
        recipe.send(((1.0, 2.0, 4.0), rows))
    combine = end.value.value
    assert isinstance(combine, TakeImportant)
    assert (combine.threshold, combine.columns) == (6.5, 3)
    assert combine.divergences is rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_merge_writes_the_dtype_of_the_models(make_model, llama, tmp_path: Path, dtype):
    """mergekit writes float32 whatever they are."""
    weights = {name: x.to(dtype) for name, x in llama().items()}
    generator = torch.Generator().manual_seed(1)
    moved = {k: (x + torch.randn(x.shape, generator=generator) * 0.01).to(dtype) for k, x in weights.items()}
    base, other = str(make_model("base", weights)), str(make_model("other", moved))
    merge(
        {"merge_method": "arcee_fusion", "base_model": base, "models": [{"model": other}]}, tmp_path / "out", workers=0
    )
    for name, got in load_file(tmp_path / "out" / "model.safetensors").items():
        assert got.dtype == dtype
        want, near = fused(*(x[name].to(torch.float64).numpy() for x in (weights, moved)))
        assert ((got.to(torch.float64).numpy() == want) | near).all()


def test_takes_exactly_one_model_beside_the_base(make_model, tmp_path: Path):
    base, a, b = (str(make_model(name, seed=i)) for i, name in enumerate(("base", "a", "b")))
    source = {"merge_method": "arcee_fusion", "base_model": base}
    with pytest.raises(PlanError, match="`arcee_fusion` takes 2 models, found 3: "):
        merge(source | {"models": [{"model": a}, {"model": b}]}, tmp_path / "out", workers=0)
    with pytest.raises(PlanError, match="`arcee_fusion` takes 2 models, found 1: "):
        merge(source | {"models": [{"model": base}]}, tmp_path / "out", workers=0)


@pytest.mark.parametrize("which", ["base", "other"])
def test_a_tensor_of_one_model_alone_is_copied(make_model, llama, tmp_path: Path, which):
    name, bias = "model.layers.0.self_attn.q_proj.bias", llama()["model.norm.weight"]
    plain, biased = str(make_model("plain", seed=1)), str(make_model("biased", llama() | {name: bias}))
    base, other = (biased, plain) if which == "base" else (plain, biased)
    merge(
        {"merge_method": "arcee_fusion", "base_model": base, "models": [{"model": other}]}, tmp_path / "out", workers=0
    )
    assert load_file(tmp_path / "out" / "model.safetensors")[name].equal(bias)
