"""TIES trimmed over the whole model: against a sort of all parameters together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mergecore

DENSITY = 0.3
MakeModel = Callable[..., Path]
Llama = Callable[..., dict[str, Tensor]]


def fine_tune(base: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Later tensors changed more, so that they keep more of their elements."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.linspace(0.001, 0.01, len(base)).tolist()
    return {
        name: (t.float() + torch.randn(t.shape, generator=generator) * step).to(dtype)
        for (name, t), step in zip(base.items(), steps, strict=True)
    }


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def family(request: pytest.FixtureRequest, make_model: MakeModel, llama: Llama) -> dict[str, dict[str, Tensor]]:
    """The tensors of base, a and b, which are in folders of these names."""
    base = llama(2, dtype=request.param)
    models = {"base": base, "a": fine_tune(base, 1, request.param), "b": fine_tune(base, 2, request.param)}
    for name, tensors in models.items():
        make_model(name, tensors)
    return models


def merged(folder: Path, models: list[str], out: str = "out", workers: int = 0, **parameters: Any) -> dict[str, Tensor]:
    """TIES on models in `folder`, written in float32."""
    config = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / name), "parameters": {"weight": 1.0}} for name in models],
        "parameters": {"density": DENSITY, "trim": "global"} | parameters,
        "out_dtype": "float32",
    }
    mergecore.merge(config, folder / out, workers=workers, write_card=False)
    return load_file(folder / out / "model.safetensors")


def deltas(model: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() - base[name].float() for name, t in model.items()}


def test_keeps_the_largest_magnitudes_of_the_whole_model(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    base = family["base"]
    out = merged(tmp_path, ["a"])
    magnitudes = torch.cat([d.abs().flatten() for d in deltas(family["a"], base).values()])
    kept = sum(int(DENSITY * t.numel()) for t in base.values())
    threshold = magnitudes.sort(descending=True).values[kept - 1]
    found = 0
    for name, delta in deltas(family["a"], base).items():
        is_kept = out[name] != base[name].float()
        found += int(is_kept.sum())
        assert is_kept[delta.abs() > threshold].all()
        assert not is_kept[delta.abs() < threshold].any()
        expected = base[name].float() + torch.where(is_kept, delta, 0.0)
        assert torch.equal(out[name], expected)
    # Among equals a hash decides, so the number is the right one on average.
    equals = int((magnitudes == threshold).sum())
    assert abs(found - kept) <= (4 * equals**0.5 if equals > 1 else 0)


def test_tensors_that_changed_more_keep_more(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    base = family["base"]
    out = merged(tmp_path, ["a"])
    shares = [(out[name] != t.float()).float().mean() for name, t in base.items()]
    assert shares[0] < DENSITY / 2 < DENSITY < shares[-1]


@pytest.mark.parametrize("family", [torch.float32], indirect=True)  # has no equal magnitudes
def test_each_model_has_a_threshold_of_its_own(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    together = merged(tmp_path, ["a", "b"], normalize=False)
    only_a, only_b = (merged(tmp_path, [name], out=name + "_alone") for name in ("a", "b"))
    for name, base in family["base"].items():
        from_a, from_b = only_a[name] - base.float(), only_b[name] - base.float()
        one_kept = (from_a == 0) | (from_b == 0)
        torch.testing.assert_close((together[name] - base.float())[one_kept], (from_a + from_b)[one_kept])


def test_workers_change_no_bit(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    alone = merged(tmp_path, ["a", "b"])
    shared = merged(tmp_path, ["a", "b"], out="shared", workers=2)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_or_nothing_is_kept(family: dict[str, dict[str, Tensor]], tmp_path: Path, density: float) -> None:
    out = merged(tmp_path, ["a"], density=density)
    expected = family["a" if density else "base"]
    for name, t in out.items():
        torch.testing.assert_close(t, expected[name].float(), rtol=1e-6, atol=1e-7)


def test_rescales(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    out = merged(tmp_path, ["a"], rescale=True)
    for name, delta in deltas(family["a"], family["base"]).items():
        kept = float((out[name] - family["base"][name].float()).abs().sum())
        assert kept == 0 or kept == pytest.approx(float(delta.abs().sum()), rel=1e-2)


def test_the_plan_says_that_inputs_are_read_once_more(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    assert merged(tmp_path, ["a"])
    config = {
        "merge_method": "ties", "base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "a")}],
        "parameters": {"weight": 1, "density": DENSITY, "trim": "global"},
    }  # fmt: skip
    made = mergecore.plan(config)
    assert made.surveyed
    assert made.passes_bytes == 2 * made.read_bytes


def test_another_value_of_trim_is_an_error(family: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    with pytest.raises(mergecore.ConfigError, match=r"trim: expected `tensor` or `global`, found"):
        merged(tmp_path, ["a"], trim="everywhere")
