"""Compare the definitions with what transformers saves, and merge each small random model with itself.

How to run: `python tests/checkpoint/check_definitions.py [CLASS ...]`, with transformers installed; nothing is
downloaded. For every class it makes a tiny random model, saves it, plans and runs a linear merge of it alone, and
checks that exactly the tensors that went in came out, byte for byte, without a tensor that the definition doesn't know.
Where it has experts stacked in memory and saves them one by one, it merges both layouts with each other too.
It takes a minute or two. The exit code is 1 if a class failed. Classes without a definition are inferred, and say so.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import mergecore
from mergecore.checkpoint.checkpoint import open_checkpoint
from mergecore.checkpoint.expert_layout import Layout, layouts_of
from mergecore.checkpoint.inference import is_inferred
from mergecore.checkpoint.recognition import recognize

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "shared_intermediate_size": 16, "shared_expert_intermediate_size": 16, "intermediate_size_mlp": 48,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16,
    "n_layer": 3, "n_layers": 3, "n_head": 4, "n_heads": 4, "n_embd": 32, "n_inner": 48, "n_positions": 64, "dim": 32,
    "hidden_dim": 48, "rotary_dim": 4, "max_seq_len": 64, "ffn_dim": 48, "word_embed_proj_dim": 32,
    "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_source_positions": 32, "max_target_positions": 32,
    "num_mel_bins": 16, "state_size": 8, "time_step_rank": 4, "block_ff_dim": 48, "conv_dim": 32,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "image_size": 28, "patch_size": 14, "depth": 3, "embed_dim": 32, "out_hidden_size": 32, "projection_dim": 32,
    "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16, "mm_tokens_per_image": 4,
    "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
"""Sizes by the names that configs have for them."""
PER_LAYER = ("layer_types", "no_rope_layers", "moe_layers", "mlp_layer_types", "layers_block_type")
"""Lists that must fit to the number of layers: left to the config class."""
LFM2_LAYERS = ["conv", "full_attention", "conv"]
MODELS: dict[str, list[dict[str, Any]]] = {
    "AfmoeForCausalLM": [{}],
    "ApertusForCausalLM": [{}],
    "ArceeForCausalLM": [{}],
    "BartForConditionalGeneration": [{}],
    "BertForMaskedLM": [{}],
    "BertForPreTraining": [{}],
    "BertForQuestionAnswering": [{}],
    "BertForSequenceClassification": [{}],
    "BertModel": [{}],
    "BloomForCausalLM": [{}],
    "CodeGenForCausalLM": [{}],
    "CohereForCausalLM": [{}, {"use_qk_norm": True}],
    "Cohere2ForCausalLM": [{}],
    "DeepseekV2ForCausalLM": [{}],
    "DeepseekV3ForCausalLM": [{}, {"q_lora_rank": None}],
    "DistilBertForMaskedLM": [{}],
    "DistilBertForSequenceClassification": [{}],
    "DistilBertModel": [{}],
    "Ernie4_5ForCausalLM": [{}],
    "Ernie4_5_MoeForCausalLM": [{}],
    "Exaone4ForCausalLM": [{}],
    "FalconForCausalLM": [{}, {"new_decoder_architecture": True}, {"parallel_attn": False, "bias": True}],
    "FalconMambaForCausalLM": [{}],
    "GPT2ForSequenceClassification": [{}],
    "GPT2LMHeadModel": [{}],
    "GPTBigCodeForCausalLM": [{}],
    "GPTJForCausalLM": [{}],
    "GPTNeoXForCausalLM": [{}],
    "GemmaForCausalLM": [{}],
    "Gemma2ForCausalLM": [{}],
    "Gemma3ForCausalLM": [{}],
    "Gemma3ForConditionalGeneration": [{}],
    "GlmForCausalLM": [{}],
    "Glm4ForCausalLM": [{}],
    "Glm4MoeForCausalLM": [{}],
    "GptOssForCausalLM": [{}],
    "GraniteForCausalLM": [{}],
    "GraniteMoeForCausalLM": [{}],
    "GraniteMoeHybridForCausalLM": [{}],
    "GraniteMoeSharedForCausalLM": [{}],
    "HeliumForCausalLM": [{}],
    "HunYuanDenseV1ForCausalLM": [{}],
    "HunYuanMoEV1ForCausalLM": [{}],
    "Lfm2ForCausalLM": [{}, {"layer_types": LFM2_LAYERS}],
    "LlamaForCausalLM": [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "LlamaForSequenceClassification": [{}],
    "LlamaForTokenClassification": [{}],
    "Llama4ForCausalLM": [{}],
    "Llama4ForConditionalGeneration": [{}],
    "LlavaForConditionalGeneration": [{}],
    "LlavaNextForConditionalGeneration": [{}],
    "MBartForConditionalGeneration": [{}],
    "MT5ForConditionalGeneration": [{}],
    "MambaForCausalLM": [{}],
    "MiniMaxM2ForCausalLM": [{}],
    "MinistralForCausalLM": [{}],
    "MistralForCausalLM": [{}],
    "Mistral3ForConditionalGeneration": [{}],
    "MixtralForCausalLM": [{}],
    "ModernBertForMaskedLM": [{}],
    "MptForCausalLM": [{}],
    "NemotronForCausalLM": [{}],
    "OPTForCausalLM": [{}, {"word_embed_proj_dim": 16}],
    "OlmoForCausalLM": [{}],
    "Olmo2ForCausalLM": [{}],
    "Olmo3ForCausalLM": [{}],
    "OlmoeForCausalLM": [{}],
    "PaliGemmaForConditionalGeneration": [{}],
    "PhiForCausalLM": [{}, {"qk_layernorm": True}],
    "Phi3ForCausalLM": [{}, {"tie_word_embeddings": True}],
    "PhimoeForCausalLM": [{}],
    "Qwen2ForCausalLM": [{}],
    "Qwen2MoeForCausalLM": [{}],
    "Qwen2VLForConditionalGeneration": [{}],
    "Qwen2_5_VLForConditionalGeneration": [{}],
    "Qwen3ForCausalLM": [{}],
    "Qwen3MoeForCausalLM": [{}],
    "Qwen3NextForCausalLM": [{}, {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}],
    "Qwen3VLForConditionalGeneration": [{}],
    "Qwen3VLMoeForConditionalGeneration": [{}],
    "RobertaForMaskedLM": [{}],
    "RobertaForSequenceClassification": [{}],
    "RobertaModel": [{}],
    "SeedOssForCausalLM": [{}],
    "SmolLM3ForCausalLM": [{}],
    "StableLmForCausalLM": [{}],
    "Starcoder2ForCausalLM": [{}, {"use_bias": False}],
    "T5ForConditionalGeneration": [{}, {"feed_forward_proj": "gated-gelu"}],
    "UMT5ForConditionalGeneration": [{}],
    "WhisperForConditionalGeneration": [{}],
    "XLMRobertaForMaskedLM": [{}],
}
"""Classes, each with the changes of its config that change the tensors."""


def small_settings(config_class: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a config class for a tiny model; those of configs inside of it are mappings."""
    default = config_class()
    known = default.to_dict()
    inside = {name for name in config_class.sub_configs if hasattr(getattr(default, name, None), "to_dict")}
    settings = {
        name: value
        for name, value in SMALL.items()
        if name in known and name not in inside and isinstance(known[name], list) == isinstance(value, list)
    }
    settings |= {name: None for name in PER_LAYER if isinstance(known.get(name), list)}
    for name in inside:
        inner = type(getattr(default, name))
        settings[name] = {"model_type": inner.model_type, **small_settings(inner, {})}
    return settings | changes


def save_model(name: str, changes: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """A tiny random model of the class `name`, as transformers saves it. Gives its tensors as they are in memory."""
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    config = model_class.config_class(**small_settings(model_class.config_class, changes))
    model = model_class(config)
    model.save_pretrained(folder)
    shared = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {key: tensor.clone() for key, tensor in model.state_dict().items() if key not in shared}


def differences(before: dict[str, torch.Tensor], models: list[Path], out: Path) -> str:
    """How the mean of some models differs from the tensors that it should have; empty if it doesn't."""
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    mergecore.merge({"merge_method": "linear", "models": entries}, out, workers=0, copy_tokenizer=False)
    after = load_file(out / "model.safetensors")
    if before.keys() != after.keys():
        return f"lost {sorted(before.keys() - after.keys())[:5]}, new {sorted(after.keys() - before.keys())[:5]}"
    changed = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    return f"changed {changed[:5]}" if changed else ""


def differences_of_layouts(before: dict[str, torch.Tensor], in_memory: dict[str, torch.Tensor], folder: Path) -> str:
    """What comes out otherwise where a model is merged with itself in the other layout of experts."""
    other = folder.with_name("stacked")
    shutil.copytree(folder, other)
    save_file(in_memory, other / "model.safetensors", metadata={"format": "pt"})
    stackings = recognize(open_checkpoint(folder)).stackings
    layouts = [layouts_of(open_checkpoint(one), stackings) for one in (folder, other)]
    if layouts != [{Layout.SEPARATE}, {Layout.STACKED}]:
        return ""
    found = differences(before, [folder, other], folder.with_name("out separate"))
    return found or differences(in_memory, [other, folder], folder.with_name("out stacked"))


def verdict(name: str, changes: dict[str, Any]) -> str:
    """What is wrong with a class; empty if nothing is."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        in_memory = save_model(name, changes, folder)
        model = open_checkpoint(folder)
        architecture = recognize(model)
        before = load_file(folder / "model.safetensors")
        found = differences(before, [folder], Path(scratch, "out"))
        unknown = architecture.fitted([model]).extra
        problems = [
            found or differences_of_layouts(before, in_memory, folder),
            f"unknown {list(unknown)[:5]}" if unknown else "",
            "inferred" if is_inferred(architecture) else "",
        ]
        return ", ".join(filter(None, problems))


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = 0
    for name in names or MODELS:
        for changes in MODELS.get(name, [{}]):
            found = verdict(name, changes)
            failed += bool(found)
            print(f"{name} {changes or ''}: {found or 'same tensors, same bytes'}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
