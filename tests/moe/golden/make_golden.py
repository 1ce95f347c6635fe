"""Write the tiny models in `models/` and what mergekit-moe makes of each `cases/*.yml`, in `expected/`.

How to run: `PYTHON tests/moe/golden/make_golden.py`, with a Python that has mergekit 0.1.5. Nothing is downloaded. It
takes some seconds, and the files come out the same every time.

The models: a base and two specialists each of the kinds Mistral, Qwen2 and Qwen3, of 2 layers, hidden size 16 and a
vocabulary of letters. Mistral has a token that begins a text, the others have none, as it is with the real ones.

mergekit runs the base model in bfloat16, and so do we. But sums of bfloat16 products come out otherwise on another kind
of CPU, so here it is made to run it in float32: what is compared is the method and not the rounding.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 2, 16, 12, 2, 1, 8
SPECIAL = ("<s>", "</s>", "<unk>")
CHARACTERS = "Ġabcdefghijklmnopqrstuvwxyz"
"""The first one is how a space is written in byte-level vocabularies."""
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
CLASSES = {"mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a model."""
    rows = {"q_proj": HEADS * HEAD_SIZE, "k_proj": KEY_VALUE_HEADS * HEAD_SIZE, "v_proj": KEY_VALUE_HEADS * HEAD_SIZE}
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (HIDDEN,),
        "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_SIZE),
        **{f"self_attn.{name}.weight": (n, HIDDEN) for name, n in rows.items()},
    }
    if kind == "qwen2":
        layer |= {f"self_attn.{name}.bias": (n,) for name, n in rows.items()}
    if kind == "qwen3":
        layer |= {"self_attn.q_norm.weight": (HEAD_SIZE,), "self_attn.k_norm.weight": (HEAD_SIZE,)}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def random_weights(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Large enough that the layers change what they get: with usual ones all hidden states would be alike."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in sorted(shapes(kind).items())}
    return {name: 1 + w if "norm" in name else w for name, w in weights.items()}


def config_of(kind: str) -> dict[str, Any]:
    """config.json"""
    return {
        "architectures": [CLASSES[kind]],
        "attention_dropout": 0.0,
        "bos_token_id": 0 if kind == "mistral" else None,
        "dtype": "float32",
        "eos_token_id": 1,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 64,
        "model_type": kind,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }


def tokenizer_of(kind: str) -> dict[str, dict[str, Any]]:
    """The tokenizer's files: a number for each letter."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": token, "special": True, **flags} for i, token in enumerate(SPECIAL)],
            "normalizer": None,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": None,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"},
        },
        "tokenizer_config.json": settings | ({"bos_token": "<s>"} if kind == "mistral" else {}),
    }


def make_models() -> None:
    """Write all of `models/`: the specialists without a tokenizer, as only the base's is read."""
    for kind in CLASSES:
        for seed, name in enumerate(("base", "a", "b")):
            folder = HERE / "models" / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            files = {"config.json": config_of(kind)} | (tokenizer_of(kind) if name == "base" else {})
            for file, content in files.items():
                (folder / file).write_text(json.dumps(content) + "\n")
            weights = random_weights(kind, 10 * list(CLASSES).index(kind) + seed)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def run_in_float32() -> None:
    """Let mergekit run the base model in float32."""
    import mergekit.moe.router as router

    automatic: Any = router.AutoModelForCausalLM

    class InFloat32:
        @staticmethod
        def from_pretrained(*args: Any, **options: Any) -> Any:
            return automatic.from_pretrained(*args, **options | {"torch_dtype": torch.float32})

    router.AutoModelForCausalLM = InFloat32


def assemble_with_mergekit(case: Path, expected: Path) -> None:
    """Write the tensors that mergekit makes of `case` into one file, and its config.json."""
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    config = MoEMergeConfig.model_validate(yaml.safe_load(case.read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        build(config, out_path=folder, merge_options=options)
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            weights |= load_file(file)
        settings = json.loads((Path(folder) / "config.json").read_text())
    save_file(weights, expected.with_suffix(".safetensors"), metadata={"made_with": "mergekit 0.1.5"})
    expected.with_suffix(".json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Models first, then every case."""
    make_models()
    run_in_float32()
    (HERE / "expected").mkdir(exist_ok=True)
    os.chdir(HERE / "cases")  # mergekit takes model paths from the working directory
    for case in sorted(Path().glob("*.yml")):
        assemble_with_mergekit(case, HERE / "expected" / case.stem)
        print(case.stem)


if __name__ == "__main__":
    main()
