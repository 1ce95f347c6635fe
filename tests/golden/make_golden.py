"""Write the tiny models in `models/` and what mergekit makes of each `cases/*.yml`, in `expected/`.

How to run: `PYTHON tests/golden/make_golden.py`, with a Python that has mergekit 0.1.5. Nothing is downloaded. It
takes a few seconds, and the files come out the same every time.

The models: Llamas of 2 layers, hidden size 16 and vocabulary 48. `float32/` and `bfloat16/` hold a base and three
fine-tunes each. `a` and `b` are near the base, as fine-tunes are; `c` is as far from it as its own size, which is where
SLERP leaves the straight line. `heads/` has one model whose output head is its embedding (tied) and one with its own.

The cases have `dtype: float32`, so that the two programs agree to the rounding of float32. DARE has a density of 1,
which drops nothing; its random numbers are a matter of each program.

NOTES on TIES. It keeps the k largest magnitudes of a delta. Where several elements have the k-th magnitude, only some
of them are kept, and which ones is arbitrary: mergekit takes what an unstable sort leaves. In bfloat16 that is common,
since fine-tuned deltas have few distinct values. So there two right answers can differ at the elements whose magnitude
equals the threshold, while all above it are kept and the number kept is the same. `test_golden.py` allows for exactly
this.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 2, 16, 12, 48
HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 2, 1, 8
DISTANCES = {"a": 0.002, "b": 0.004, "c": 0.03}
"""Standard deviation of each fine-tune's delta; that of the base's matrices is 0.02."""


def shapes(tied: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of the model."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.k_proj": (KEY_VALUE_HEADS * HEAD_SIZE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE),
        "self_attn.q_proj": (HEADS * HEAD_SIZE, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE_HEADS * HEAD_SIZE, HIDDEN),
    }
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for index in range(LAYERS):
        found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return found if tied else found | {"lm_head.weight": (VOCABULARY, HIDDEN)}


def random_weights(seed: int, tied: bool = False) -> dict[str, torch.Tensor]:
    """A base: normal matrices, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in sorted(shapes(tied).items())}
    return {name: 1 + w if w.ndim == 1 else w for name, w in weights.items()}


def fine_tune(base: dict[str, torch.Tensor], seed: int, distance: float) -> dict[str, torch.Tensor]:
    """The base with a normal delta."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + distance * torch.randn(w.shape, generator=generator) for name, w in base.items()}


def save(folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype, tied: bool = False) -> None:
    """Write a model folder: weights and config.json, no tokenizer."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": tied,
        "vocab_size": VOCABULARY,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {name: w.to(dtype).contiguous() for name, w in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def make_models() -> None:
    """Write all of `models/`."""
    base = random_weights(seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        family = HERE / "models" / str(dtype).removeprefix("torch.")
        save(family / "base", base, dtype)
        for seed, (name, distance) in enumerate(DISTANCES.items(), start=2):
            save(family / name, fine_tune(base, seed, distance), dtype)
    save(HERE / "models/heads/tied", random_weights(seed=11, tied=True), torch.float32, tied=True)
    save(HERE / "models/heads/tied_too", random_weights(seed=12, tied=True), torch.float32, tied=True)
    save(HERE / "models/heads/untied", random_weights(seed=13), torch.float32)


def merge_with_mergekit(case: Path, expected: Path) -> None:
    """Write the tensors that mergekit makes of `case` into one file."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(case.read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        run_merge(config, folder, options)
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            weights |= load_file(file)
    save_file(weights, expected, metadata={"made_with": "mergekit 0.1.5"})


def main() -> None:
    """Models first, then every case."""
    make_models()
    (HERE / "expected").mkdir(exist_ok=True)
    os.chdir(HERE / "cases")  # mergekit takes model paths from the working directory
    for case in sorted(Path().glob("*.yml")):
        merge_with_mergekit(case, HERE / "expected" / f"{case.stem}.safetensors")
        print(case.stem)


if __name__ == "__main__":
    main()
