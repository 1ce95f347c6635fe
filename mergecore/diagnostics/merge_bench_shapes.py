"""Shapes of real models, for checkpoints that are generated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from mergecore.diagnostics.choices import require_known

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama, or with experts of a Mixtral."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    experts: int = 0
    """0: one dense MLP per layer."""

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(map(prod, self.tensors().values()))

    def tiny(self) -> Shape:
        """The same kind of model, as small as can be."""
        return replace(
            self, hidden=64, intermediate=160, layers=1, heads=4, key_value_heads=2, vocabulary=256,
            experts=min(self.experts, 2),
        )  # fmt: skip

    def tensors(self) -> dict[str, Dims]:
        """All tensors in the order of the model. The output head is not tied."""
        embedding = (self.vocabulary, self.hidden)
        found: dict[str, Dims] = {"model.embed_tokens.weight": embedding}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{name}.weight": dims for name, dims in self._layer().items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": embedding}

    def _layer(self) -> dict[str, Dims]:
        key_value = self.hidden // self.heads * self.key_value_heads
        return {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            **self._mlp(),
        }

    def _mlp(self) -> dict[str, Dims]:
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        if not self.experts:
            return {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
        found: dict[str, Dims] = {"block_sparse_moe.gate": (self.experts, self.hidden)}
        for expert in range(self.experts):
            start = f"block_sparse_moe.experts.{expert}"
            found |= {f"{start}.w1": up, f"{start}.w2": down, f"{start}.w3": up}
        return found

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json; `dtype` is named as in torch."""
        kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        if self.experts:
            kind = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
            kind |= {"num_local_experts": self.experts, "num_experts_per_tok": min(2, self.experts)}
        return kind | {
            "dtype": dtype,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.key_value_heads,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "llama-1b": Shape(2048, 5632, 22, 32, 4, 32000),
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "mixtral": Shape(4096, 14336, 32, 32, 8, 32000, experts=8),
}
"""TinyLlama 1.1B, Llama 3.1 8B, Mixtral 8x7B."""


def shape_like(name: str, layers: int | None = None) -> Shape:
    """One of SHAPES, with all of its layers or as many as are wanted. Raises ConfigError for an unknown name."""
    require_known([name], "--like", SHAPES)
    return SHAPES[name] if layers is None else replace(SHAPES[name], layers=layers)
