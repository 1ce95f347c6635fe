"""Write `families.json`: config.json and the tensors' shapes of tiny models, as transformers saves them.

How to run: `PYTHONPATH=tests PYTHON -m families.make_families`, with a Python that has transformers 5. Nothing is
downloaded.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers as tr
from safetensors import safe_open

HIDDEN, MLP, LAYERS, VOCABULARY = 16, 24, 2, 40
DECODER = {
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
}
CLIP = {
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 32}
T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": MLP,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": 2,
    "vocab_size": VOCABULARY,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
WHISPER = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": MLP,
    "decoder_ffn_dim": MLP,
    "vocab_size": VOCABULARY,
    "num_mel_bins": 4,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (tr.LlamaForCausalLM, tr.LlamaConfig, DECODER),
    "mistral": (tr.MistralForCausalLM, tr.MistralConfig, DECODER),
    "qwen2": (tr.Qwen2ForCausalLM, tr.Qwen2Config, DECODER | {"tie_word_embeddings": True}),
    "qwen3": (tr.Qwen3ForCausalLM, tr.Qwen3Config, DECODER),
    "qwen3_moe": (
        tr.Qwen3MoeForCausalLM,
        tr.Qwen3MoeConfig,
        DECODER | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "mixtral": (tr.MixtralForCausalLM, tr.MixtralConfig, DECODER | {"num_local_experts": 3}),
    "gemma2": (tr.Gemma2ForCausalLM, tr.Gemma2Config, DECODER),
    "gemma3": (tr.Gemma3ForCausalLM, tr.Gemma3TextConfig, DECODER),
    "phi3": (tr.Phi3ForCausalLM, tr.Phi3Config, DECODER | {"pad_token_id": 0}),
    "gpt2": (tr.GPT2LMHeadModel, tr.GPT2Config, GPT2),
    "gpt_neox": (tr.GPTNeoXForCausalLM, tr.GPTNeoXConfig, DECODER),
    "cohere2": (tr.Cohere2ForCausalLM, tr.Cohere2Config, DECODER),
    "olmo2": (tr.Olmo2ForCausalLM, tr.Olmo2Config, DECODER),
    "starcoder2": (tr.Starcoder2ForCausalLM, tr.Starcoder2Config, DECODER),
    "stablelm": (tr.StableLmForCausalLM, tr.StableLmConfig, DECODER),
    "granite": (tr.GraniteForCausalLM, tr.GraniteConfig, DECODER),
    "bert": (tr.BertForMaskedLM, tr.BertConfig, DECODER),
    "t5": (tr.T5ForConditionalGeneration, tr.T5Config, T5),
    "whisper": (tr.WhisperForConditionalGeneration, tr.WhisperConfig, WHISPER),
    "llava": (
        tr.LlavaForConditionalGeneration,
        tr.LlavaConfig,
        {
            "text_config": tr.LlamaConfig(**DECODER).to_dict(),
            "vision_config": tr.CLIPVisionConfig(**CLIP).to_dict(),
            "image_token_index": 3,
        },
    ),
}


def saved(model: Any) -> dict[str, Any]:
    """What transformers writes: config.json, and the shape of each tensor."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config.pop("transformers_version", None)
    return {"config": config, "shapes": shapes}


def main() -> None:
    families = {name: saved(model(config(**keys))) for name, (model, config, keys) in MODELS.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(family)}" for name, family in families.items())
    Path(__file__).with_name("families.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
