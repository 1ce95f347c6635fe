"""A whole merge by the kernels: the file has the bytes that the torch twins give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergecore import merge

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"lambda": 1.5},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5, "lambda": 0.7},
}

MIXED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16)


@pytest.mark.parametrize(
    ("method", "dtypes"),
    [(method, (torch.bfloat16,) * 3) for method in METHODS] + [(method, MIXED) for method in ("linear", "ties")],
)
def test_kernels_write_the_bytes_of_their_twins(
    method: str, dtypes: tuple[torch.dtype, ...], make_model, llama, tmp_path: Path
) -> None:
    base, a, b = (
        str(make_model(name, llama(1, seed=i, dtype=dtype), n_layers=1))
        for i, (name, dtype) in enumerate(zip(("base", "a", "b"), dtypes, strict=True))
    )
    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model, "parameters": {"weight": w}} for model, w in ((a, 0.7), (b, 0.4))],
        "parameters": METHODS[method],
        "dtype": "bfloat16",
    }
    if method not in ("linear", "slerp"):
        config["base_model"] = base
    for backend in ("torch", "triton"):
        result = merge(config, tmp_path / backend, backend=backend, workers=0, seed=1)
        assert result.report.backend.name == backend
    by_torch, by_triton = ((tmp_path / b / "model.safetensors").read_bytes() for b in ("torch", "triton"))
    assert by_torch == by_triton
