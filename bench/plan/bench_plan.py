"""How long it takes to plan a merge: a 70B model's headers, four times, without a weight."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from mergecore import plan
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import header_bytes

HIDDEN, MLP, KV, LAYERS, VOCABULARY = 8192, 28672, 1024, 80, 128256
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


@pytest.fixture
def llama_70b(tmp_path: Path) -> list[Path]:
    """A base and three fine-tunes. The headers are real, the weights are a hole in the file."""
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in LAYER.items()
    }
    embeddings = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, HIDDEN))
    shapes |= {**embeddings, "model.norm.weight": (HIDDEN,)}
    folders = [tmp_path / name for name in ("base", "a", "b", "c")]
    for folder in folders:
        folder.mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
        (folder / "config.json").write_text(json.dumps(config))
        header = header_bytes([(name, Dtype.BF16, shape) for name, shape in shapes.items()])
        with (folder / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(2 * prod(shape) for shape in shapes.values()))
    return folders


@pytest.mark.parametrize("method", ["linear", "ties"])
def bench_plan(benchmark: Any, llama_70b: list[Path], method: str) -> None:
    base, *tuned = map(str, llama_70b)
    config = {"merge_method": method, "base_model": base, "models": [{"model": m} for m in tuned],
              "parameters": {"weight": 1, "density": [0.2, 0.8]}}  # fmt: skip
    made = benchmark(plan, config)
    assert made.read_bytes == 4 * sum(tensor.n_bytes for tensor in made.tensors)
    assert made.write_bytes > 140e9
