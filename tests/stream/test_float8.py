"""Whole merges of float8 models: what is written is bfloat16, and has been rounded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergecore import RunError, merge

E4M3FN, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def linear(*models: Path) -> dict[str, object]:
    return {"merge_method": "linear", "models": [{"model": str(m)} for m in models], "parameters": {"weight": 1}}


def test_a_mean_of_both_formats(make_model, llama, tmp_path: Path) -> None:
    a, b = llama(seed=0, dtype=E4M3FN), llama(seed=1, dtype=E5M2)
    merge(linear(make_model("a", a), make_model("b", b)), tmp_path / "out", workers=0)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert list(merged) == list(a)
    for name, got in merged.items():
        # The sum of two such numbers fits into a float32, so only the store rounds.
        assert torch.equal(got, ((a[name].float() + b[name].float()) / 2).to(torch.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [E4M3FN, E5M2], ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_byte_is_copied_as_a_wider_number(make_model, llama, tmp_path: Path, dtype, stored) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    model = make_model("a", llama(dtype=dtype) | {"model.every": every})
    wanted = {} if stored == torch.bfloat16 else {"out_dtype": str(stored).removeprefix("torch.")}
    source = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    merge(source | wanted, tmp_path / "out", workers=0, allow_nonfinite=True)
    got, want = load_file(tmp_path / "out" / "model.safetensors")["model.every"], every.to(stored)
    assert got.dtype == stored
    assert torch.equal(got.nan_to_num(0.123), want.nan_to_num(0.123))


@pytest.mark.parametrize(("dtype", "value"), [(E4M3FN, "nan"), (E5M2, "nan"), (E5M2, "inf")], ids=str)
def test_nonfinite_inputs_are_refused_by_name(make_model, llama, tmp_path: Path, dtype, value: str) -> None:
    tensors = llama(dtype=dtype)
    tensors["model.norm.weight"][3] = float(value)
    good, bad = make_model("good", dtype=dtype), make_model("bad", tensors)
    message = r"bad: `model.norm.weight` holds NaN or infinite values \(1 in the part that was read\)"
    with pytest.raises(RunError, match=message):
        merge(linear(good, bad), tmp_path / "out", workers=0)
