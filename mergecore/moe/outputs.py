"""The kinds of models that dense ones can be assembled to: the names of their tensors, and their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergecore.config.mixture import ARCHITECTURES

MATRICES = ("gate_proj", "up_proj", "down_proj")
"""Of an MLP, as dense models call them."""
STACKED = "stacked"
COMPUTED = "rotary_emb.inv_freq"
"""How tensors end that old versions of transformers stored and new ones compute. They are left out."""
_LAYER = "model.layers.{layer}."
_ROUTER = _LAYER + "mlp.gate.weight"
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes a dense model's config.json to say where it says nothing: a mixture has other defaults."""
_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_DENSE_ONLY = ("auto_map", "layer_types", "max_window_layers", "mlp_bias", "pretraining_tp")
_ROPE_KEYS = ("rope_theta", "rope_parameters")
_ROPE_BASE = 10000.0
_DEEPSEEK_CODE = "deepseek-ai/deepseek-moe-16b-base--"


@dataclass(frozen=True, slots=True)
class Output:
    """One kind of mixture. `{layer}`, `{expert}` and `{matrix}` stand for numbers and for one of `MATRICES`."""

    name: str
    """As a config calls it."""
    architecture: str
    """The class in transformers."""
    model_type: str
    inputs: tuple[str, ...]
    """The `model_type`s that it can be made of."""
    router: str = _ROUTER
    """[experts, hidden], beside separate experts."""
    expert: str = _LAYER + "mlp.experts.{expert}.{matrix}.weight"
    """Where each is a tensor of its own."""
    matrices: Mapping[str, str] = field(default_factory=dict)
    """Other names of some of the matrices."""
    shared: str = ""
    """A shared expert; empty where there can be none."""
    shared_gate: str = ""
    """[1, hidden], beside a shared expert; empty where it has no gate."""
    can_stack: bool = True
    """Whether transformers reads the experts of a layer from one tensor."""
    has_own_tensors: bool = True
    """Whether only the tensors that transformers knows of this kind can be written; else all that the base has."""
    biases: tuple[str, ...] = ()
    """Of attention, which the kind must have, and which are zero where the base has none."""

    def expert_name(self, matrix: str, layer: int, expert: int) -> str:
        """The tensor of one of an expert's matrices."""
        return self.expert.format(layer=layer, expert=expert, matrix=self.matrices.get(matrix, matrix))

    def stacked_names(self, layer: int) -> dict[str, tuple[str, ...]]:
        """The tensors that hold matrices of all experts, [experts, rows, columns], and which they hold in a row."""
        start = _LAYER.format(layer=layer) + "mlp.experts."
        return {start + "gate_up_proj": ("gate_proj", "up_proj"), start + "down_proj": ("down_proj",)}

    def router_name(self, layer: int, *, stacked: bool) -> str:
        return (_ROUTER if stacked else self.router).format(layer=layer)


MIXTRAL, DEEPSEEK, QWEN, QWEN3 = OUTPUTS = (
    Output(
        ARCHITECTURES[0],
        "MixtralForCausalLM",
        "mixtral",
        ("llama", "mistral"),
        router=_LAYER + "block_sparse_moe.gate.weight",
        expert=_LAYER + "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
    Output(
        ARCHITECTURES[1],
        "DeepseekForCausalLM",
        "deepseek",
        ("llama", "mistral"),
        shared=_LAYER + "mlp.shared_experts.{matrix}.weight",
        can_stack=False,
        has_own_tensors=False,
    ),
    Output(
        ARCHITECTURES[2],
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        ("llama", "mistral", "qwen2"),
        shared=_LAYER + "mlp.shared_expert.{matrix}.weight",
        shared_gate=_LAYER + "mlp.shared_expert_gate.weight",
        biases=("q_proj", "k_proj", "v_proj"),
    ),
    Output(ARCHITECTURES[3], "Qwen3MoeForCausalLM", "qwen3_moe", ("qwen3",)),
)


def mixture_config(
    output: Output, base: Mapping[str, Any], *, experts: int, shared_experts: int, experts_per_token: int
) -> dict[str, Any]:
    """config.json of the mixture, from that of the base model. The element type isn't touched."""
    config = {key: value for key, value in _explicit(base).items() if key not in _DENSE_ONLY}
    if output is not QWEN3:
        config.pop("attention_bias", None)
    config |= {
        "architectures": [output.architecture],
        "model_type": output.model_type,
        "num_experts_per_tok": experts_per_token,
    }
    if output is MIXTRAL:
        return config | {"num_local_experts": experts, "sliding_window": None}
    sizes = {"moe_intermediate_size": config["intermediate_size"], "norm_topk_prob": True}
    if output is DEEPSEEK:
        return config | sizes | _deepseek(experts, shared_experts)
    config |= sizes | {
        "num_experts": experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "sliding_window": None,
        "use_sliding_window": False,
    }
    return config | ({"shared_expert_intermediate_size": config["intermediate_size"]} if output is QWEN else {})


def _explicit(base: Mapping[str, Any]) -> dict[str, Any]:
    """The dense model's config with all that it leaves to the defaults of its kind."""
    defaults = {
        **_DEFAULTS,
        "num_key_value_heads": base.get("num_attention_heads"),
        **_FAMILY_DEFAULTS[base["model_type"]],
    }
    config = {**base, **{key: value for key, value in defaults.items() if key not in base}}
    if not any(key in config for key in _ROPE_KEYS):
        config["rope_theta"] = _ROPE_BASE
    return config


def _deepseek(experts: int, shared_experts: int) -> dict[str, Any]:
    """What the code of DeepSeek's first mixture, which is not part of transformers, wants to know."""
    code = {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModel": "modeling_deepseek.DeepseekModel",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    }
    return {
        "n_routed_experts": experts,
        "n_shared_experts": shared_experts or None,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "auto_map": {key: _DEEPSEEK_CODE + name for key, name in code.items()},
    }
