"""How long planning takes, from real headers without a weight: four 70B models; two 671B mixtures of experts."""

from __future__ import annotations

import json
import resource
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


EXPERTS, DENSE_LAYERS, DEEPSEEK_LAYERS, DEEPSEEK_HIDDEN, EXPERT_MLP = 256, 3, 61, 7168, 2048
DEEPSEEK_ATTENTION = {
    "q_a_proj": (1536, DEEPSEEK_HIDDEN),
    "q_a_layernorm": (1536,),
    "q_b_proj": (24576, 1536),
    "kv_a_proj_with_mqa": (576, DEEPSEEK_HIDDEN),
    "kv_a_layernorm": (512,),
    "kv_b_proj": (32768, 512),
    "o_proj": (DEEPSEEK_HIDDEN, 16384),
}
Shapes = dict[str, tuple[int, ...]]


def llama_70b() -> tuple[dict[str, Any], Shapes]:
    """config.json and the shapes of all tensors."""
    shapes: Shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in LAYER.items()}
    embeddings = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY, HIDDEN))
    shapes |= {**embeddings, "model.norm.weight": (HIDDEN,)}
    return {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}, shapes


def deepseek_671b() -> tuple[dict[str, Any], Shapes]:
    """The same of a model with many small tensors."""
    hidden, matrices = DEEPSEEK_HIDDEN, ("gate", "up", "down")
    shapes: Shapes = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (129280, hidden))
    shapes["model.norm.weight"] = (hidden,)
    for i in range(DEEPSEEK_LAYERS):
        layer = f"model.layers.{i}."
        shapes |= dict.fromkeys(
            (layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight"), (hidden,)
        )
        shapes |= {f"{layer}self_attn.{name}.weight": shape for name, shape in DEEPSEEK_ATTENTION.items()}
        experts = [f"experts.{e}." for e in range(EXPERTS)] + ["shared_experts."]
        for part in experts if i >= DENSE_LAYERS else [""]:
            shapes |= {f"{layer}mlp.{part}{name}_proj.weight": (EXPERT_MLP, hidden) for name in matrices}
        if i >= DENSE_LAYERS:
            shapes |= {
                layer + "mlp.gate.weight": (EXPERTS, hidden),
                layer + "mlp.gate.e_score_correction_bias": (EXPERTS,),
            }
    config = {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": DEEPSEEK_LAYERS}
    return config | {"n_routed_experts": EXPERTS, "first_k_dense_replace": DENSE_LAYERS}, shapes


def write_models(folder: Path, names: str, config: dict[str, Any], shapes: Shapes) -> list[str]:
    """A base and fine-tunes. The headers are real, the weights are a hole in the file."""
    header = header_bytes([(name, Dtype.BF16, shape) for name, shape in shapes.items()])
    n_bytes = len(header) + sum(2 * prod(shape) for shape in shapes.values())
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        with (folder / name / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(n_bytes)
    return [str(folder / name) for name in names]


def merge_of(method: str, base: str, *tuned: str) -> dict[str, Any]:
    models = [{"model": model} for model in tuned]
    parameters = {"weight": 1, "density": [0.2, 0.8]}
    return {"merge_method": method, "base_model": base, "models": models, "parameters": parameters}


@pytest.mark.parametrize("method", ["linear", "ties"])
def bench_plan_four_70b(benchmark: Any, tmp_path: Path, method: str) -> None:
    made = benchmark(plan, merge_of(method, *write_models(tmp_path, "bxyz", *llama_70b())))
    assert made.read_bytes == 4 * sum(tensor.n_bytes for tensor in made.tensors)
    assert made.write_bytes > 140e9


@pytest.mark.parametrize("method", ["linear", "ties"])
def bench_plan_two_671b(benchmark: Any, tmp_path: Path, method: str) -> None:
    config = merge_of(method, *write_models(tmp_path, "ba", *deepseek_671b()))
    made = benchmark.pedantic(plan, (config,), rounds=2)
    benchmark.extra_info["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    assert len(made.tensors) > 45_000
