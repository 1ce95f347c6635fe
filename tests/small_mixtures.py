"""Small mixtures of experts in both layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import save_sharded
from torch import Tensor

N_LAYERS, N_EXPERTS, HIDDEN, MLP = 2, 3, 6, 4
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": N_LAYERS,
    "num_experts": N_EXPERTS,
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": N_LAYERS,
    "num_local_experts": N_EXPERTS,
}  # fmt: skip
UNKNOWN: dict[str, Any] = {"architectures": ["NewMoeForCausalLM"], "model_type": "new", "num_hidden_layers": N_LAYERS}
LARGE = {"hidden": 64, "mlp": 700}
"""Sizes with which a stacked tensor has several chunks, and an expert ends in the middle of one."""
_BLOCKS = {"mixtral": ("block_sparse_moe", {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"})}


def separate_experts(
    config: Mapping[str, Any] = QWEN3, seed: int = 0, *, hidden: int = HIDDEN, mlp: int = MLP
) -> dict[str, Tensor]:
    """A small random model in bfloat16, whose experts have tensors of their own."""
    block, matrices = _BLOCKS.get(config["model_type"], ("mlp", {}))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (9, hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        if config["model_type"] == "qwen3_moe":
            shapes |= {f"{layer}self_attn.{p}_norm.weight": (2,) for p in "qk"}
        shapes[f"{layer}{block}.gate.weight"] = (N_EXPERTS, hidden)
        for e in range(N_EXPERTS):
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                shape = (hidden, mlp) if matrix == "down_proj" else (mlp, hidden)
                shapes[f"{layer}{block}.experts.{e}.{matrices.get(matrix, matrix)}.weight"] = shape
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (9, hidden)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def stacked_experts(separate: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same model as transformers 5 has it in memory."""
    found: dict[str, Tensor] = {}
    for name, tensor in separate.items():
        match = re.fullmatch(r"(.*)\.(mlp|block_sparse_moe)\.experts\.0\.(gate_proj|w1|down_proj|w2)\.weight", name)
        if match:
            layer, block, matrix = match.groups()
            names = {"gate_proj": ("gate_proj", "up_proj"), "w1": ("w1", "w3")}.get(matrix, (matrix,))
            of_each = [
                torch.cat([separate[f"{layer}.{block}.experts.{e}.{one}.weight"] for one in names])
                for e in range(N_EXPERTS)
            ]
            found[f"{layer}.mlp.experts.{'gate_up_proj' if len(names) > 1 else 'down_proj'}"] = torch.stack(of_each)
        elif ".experts." not in name:
            found[name.replace("block_sparse_moe", "mlp")] = tensor
    return found


def write_mixture(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_sharded(folder, tensors, shards)
    return folder


def write_mixtures(root: Path, config: Mapping[str, Any], **sizes: int) -> dict[str, Path]:
    """The folders of the models `base`, `a` and `b`, and of the same with stacked experts: `base/`, `a/`, `b/`."""
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        tensors = separate_experts(config, seed, **sizes)
        found[name] = write_mixture(root / name, config, tensors, shards=3)
        found[f"{name}/"] = write_mixture(root / f"{name}-stacked", config, stacked_experts(tensors), shards=2)
    return found
