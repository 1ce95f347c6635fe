"""Mixtures load in transformers, and compute what they should: with equal experts, what the dense model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergecore

MODELS = Path(__file__).parent / "golden" / "models"
SILENT = [{"source_model": str(MODELS / "qwen2/base"), "residual_scale": 0.0}]


def logits(folder: Path) -> Tensor:
    """Of some tokens. Fails if a weight is missing or left over."""
    transformers = pytest.importorskip("transformers")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.tensor([[5, 9, 17, 3, 28, 11, 4]])
    with torch.inference_mode():
        result: Tensor = model(tokens).logits
    return result


def assembled(out: Path, kind: str, names: tuple[str, ...], **more: Any) -> Path:
    experts = [{"source_model": str(MODELS / kind / name)} for name in names]
    config = {"base_model": str(MODELS / kind / "base"), "gate_mode": "random", "experts": experts, "dtype": "float32"}
    mergecore.merge(config | more, out, workers=0, seed=1)
    return out


@pytest.mark.parametrize("layout", ["separate", "stacked"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("mistral", {}), ("qwen2", {"shared_experts": SILENT}), ("qwen3", {})],
    ids=["mixtral", "qwen2_moe", "qwen3_moe"],
)
def test_equal_experts_are_the_dense_model(kind: str, more: dict[str, Any], layout: str, tmp_path: Path) -> None:
    """The shares of the experts that a token goes to add up to one."""
    out = assembled(tmp_path / "out", kind, ("base", "base", "base"), expert_layout=layout, **more)
    torch.testing.assert_close(logits(out), logits(MODELS / kind / "base"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mistral", "qwen3"])
def test_both_layouts_compute_the_same(kind: str, tmp_path: Path) -> None:
    separate, stacked = (assembled(tmp_path / x, kind, ("a", "b"), expert_layout=x) for x in ("separate", "stacked"))
    assert torch.equal(logits(separate), logits(stacked))
    assert not torch.allclose(logits(separate), logits(MODELS / kind / "base"), atol=0.1)


def test_what_a_llamas_config_leaves_out_is_written(make_model, tmp_path: Path) -> None:
    """A Mixtral has other defaults: without these, attention would turn at another rate."""
    base = str(make_model("base"))
    config = {"base_model": base, "gate_mode": "random", "experts": [{"source_model": base}] * 2}
    mergecore.merge(config, tmp_path / "out", workers=0, seed=1)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["rope_theta"], written["rms_norm_eps"]) == (10000.0, 1e-6)
    assert (written["num_key_value_heads"], written["max_position_embeddings"]) == (1, 2048)
    torch.testing.assert_close(logits(tmp_path / "out"), logits(Path(base)), rtol=1e-4, atol=1e-4)
