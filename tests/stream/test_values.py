"""Merged values against the definitions of the methods, in float64 on whole tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mergecore import RunError, merge, methods

Reference = Callable[[Tensor, Tensor, Tensor], Tensor]
WEIGHTS = (0.7, -0.4)
DENSITY = 0.4


def linear(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (WEIGHTS[0] * a + WEIGHTS[1] * b) / sum(WEIGHTS)


def slerp(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    angle = math.acos(float((a * b).sum() / a.norm() / b.norm()))
    return (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)


def task_arithmetic(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return base + 1.5 * (WEIGHTS[0] * (a - base) + WEIGHTS[1] * (b - base))


def trimmed(delta: Tensor) -> Tensor:
    """Float32 inputs have no equal magnitudes, so the choice among equals doesn't matter."""
    k = max(1, int(DENSITY * delta.numel()))
    smallest = delta.abs().flatten().topk(k).values[-1]
    return torch.where(delta.abs() >= smallest, delta, 0.0)


def ties(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    weighted = torch.stack([w * trimmed(x - base) for w, x in zip(WEIGHTS, (a, b), strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = weighted.sign() == sign
    weights = torch.tensor(WEIGHTS, dtype=torch.float64).view(2, *[1] * base.dim())
    divisor = (agree * weights).sum(0)
    return base + 1.5 * (agree * weighted).sum(0) / torch.where(divisor == 0, 1.0, divisor)


def passthrough(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * a


def sce(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    deltas = torch.stack([a - base, b - base])
    squares = (deltas**2).flatten(1).mean(1).view(2, *[1] * base.dim())
    shares = squares * (deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0))
    return base + (deltas * shares).sum(0) / shares.sum(0)


def ram(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    deltas = torch.stack([a - base, b - base])
    active = deltas.abs() > 0.05
    return base + (deltas * active).sum(0) / active.sum(0).clamp(min=1)


def nearswap(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    share = (0.1 / (a - base).abs()).clamp(max=1)
    return share * a + (1 - share) * base


CASES: dict[str, tuple[Reference, dict[str, Any], dict[str, Any]]] = {
    # method: reference, parameters of each model, parameters of all
    "linear": (linear, {}, {}),
    "slerp": (slerp, {}, {"t": 0.3}),
    "task_arithmetic": (task_arithmetic, {}, {"lambda": 1.5}),
    "ties": (ties, {"density": DENSITY}, {"lambda": 1.5}),
    "passthrough": (passthrough, {"scale": 0.5}, {}),
    "dare_linear": (task_arithmetic, {"density": 1}, {"lambda": 1.5}),
    "breadcrumbs": (task_arithmetic, {"density": 1}, {"lambda": 1.5}),
    "sce": (sce, {}, {}),
    "ram": (ram, {}, {"epsilon": 0.05}),
    "nearswap": (nearswap, {}, {"t": 0.1}),
}


@pytest.mark.parametrize("method", CASES)
def test_agrees_with_the_definition(method: str, make_model, llama, tmp_path: Path) -> None:
    reference, own, shared = CASES[method]
    models = {name: llama(seed=seed) for seed, name in enumerate(("base", "a", "b"))}
    folders = {name: str(make_model(name, tensors)) for name, tensors in models.items()}
    entries = [
        {"model": folders[name], "parameters": {"weight": w} | own} for name, w in zip("ab", WEIGHTS, strict=True)
    ]
    if method in ("passthrough", "nearswap"):
        del entries[1]
    found = methods.get(method)
    base = {"base_model": folders["base"]} if found.base == "required" else {}
    merge({"merge_method": method, "models": entries, "parameters": shared} | base, tmp_path / "out", workers=0)
    for name, got in load_file(tmp_path / "out" / "model.safetensors").items():
        want = reference(*(models[m][name].double() for m in ("base", "a", "b")))
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6 * float(want.abs().max()), msg=name)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_keeps_the_density_and_the_sum_of_magnitudes(method: str, make_model, llama, tmp_path: Path) -> None:
    base, tuned = llama(seed=0), llama(seed=1)
    folders = str(make_model("base", base)), str(make_model("a", tuned))
    entry = {"model": folders[1], "parameters": {"weight": 1, "density": DENSITY}}
    merge({"merge_method": method, "base_model": folders[0], "models": [entry]}, tmp_path / "out", workers=0, seed=1)
    kept = n = 0
    for name, got in load_file(tmp_path / "out" / "model.safetensors").items():
        before, after = tuned[name].double() - base[name].double(), got.double() - base[name].double()
        kept += int((after != 0).sum())
        n += after.numel()
        torch.testing.assert_close(after.abs().sum(), before.abs().sum(), rtol=1e-5, atol=0)
    assert abs(kept - DENSITY * n) < 4 * math.sqrt(n * DENSITY * (1 - DENSITY))


def test_slerp_from_a_base_that_comes_second(make_model, llama, tmp_path: Path) -> None:
    a, b = (str(make_model(name, seed=seed)) for seed, name in enumerate("ab"))
    for models, base, t in (([a, b], b, 0.3), ([b, a], b, 0.3), ([a, b], a, 0.7)):
        source = {"merge_method": "slerp", "models": [{"model": m} for m in models], "base_model": base}
        merge(source | {"parameters": {"t": t}}, tmp_path / "out", workers=0, overwrite=True)
        got = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].double()
        want = slerp(got, llama(seed=1)["lm_head.weight"].double(), llama(seed=0)["lm_head.weight"].double())
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_inputs_are_refused_by_name(value: float, make_model, llama, tmp_path: Path) -> None:
    broken = llama()
    broken["model.norm.weight"][3] = value
    good, bad = str(make_model("good")), str(make_model("bad", broken))
    source = {"merge_method": "linear", "models": [{"model": good}, {"model": bad}], "parameters": {"weight": 1}}
    message = rf"{bad}: `model.norm.weight` holds NaN or infinite values \(1 in the part that was read\)"
    with pytest.raises(RunError, match=message):
        merge(source, tmp_path / "out", workers=0)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    result = merge(source, tmp_path / "out", workers=0, allow_nonfinite=True)
    assert result.report.nonfinite == {("model.norm.weight", bad): 1}


def test_integers_are_copied_if_they_are_equal(make_model, llama, tmp_path: Path) -> None:
    ids = torch.arange(5)
    a, b = (str(make_model(name, llama(seed=i) | {"ids": ids})) for i, name in enumerate("ab"))
    other = str(make_model("other", llama() | {"ids": ids + 1}))
    source: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1}}
    merge(source | {"models": [{"model": a}, {"model": b}]}, tmp_path / "out", workers=0)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["ids"], ids)
    with pytest.raises(RunError, match="`ids` is not floating point, so it can only be copied, but it differs"):
        merge(source | {"models": [{"model": a}, {"model": other}]}, tmp_path / "no", workers=0)


def test_empty_and_scalar_tensors(make_model, llama, tmp_path: Path) -> None:
    odd = {"empty": torch.ones(0, 4), "scalar": torch.tensor(2.0)}
    a, b = (str(make_model(name, llama(seed=i) | odd)) for i, name in enumerate("ab"))
    source = {"merge_method": "slerp", "models": [{"model": a}, {"model": b}], "parameters": {"t": 0.5}}
    merge(source, tmp_path / "out", workers=0)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got["empty"].shape == (0, 4)
    assert got["scalar"] == 2.0


def test_config_and_card_of_the_output(make_model, tmp_path: Path) -> None:
    a, b = str(make_model("a", torch_dtype="float32")), str(make_model("b", seed=1))
    slices = [{"sources": [{"model": m, "layer_range": [0, 2]}]} for m in (a, b)]
    merge({"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}, tmp_path / "out", workers=0)
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["num_hidden_layers"] == 4
    assert made["torch_dtype"] == "bfloat16"
    assert "passthrough" in (tmp_path / "out" / "README.md").read_text()
