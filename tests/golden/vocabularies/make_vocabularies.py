"""Makes `models/` and `expected/`: what mergekit 0.1.5 writes for the configs in `cases/`.

    PYTHONPATH=tests python tests/golden/vocabularies/make_vocabularies.py

needs mergekit 0.1.5 with transformers 5. Each expected file holds the embedding and the head, and in its metadata the
vocabulary, since rows are compared token by token: mergekit numbers the tokens that a base lacks in an order that is
another one in every run. All cases have a `base_model`, or else mergekit draws the model whose tokens keep their
numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import yaml
from safetensors.torch import load_file, save_file
from small_vocabularies import KINDS, TEXTS, save_model, train, with_added
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def make_models() -> None:
    """Three of each kind, with special and added tokens that overlap."""
    shutil.rmtree(HERE / "models", ignore_errors=True)
    for kind in KINDS:
        for seed, (name, texts) in enumerate(TEXTS.items()):
            tokenizer = train(kind, texts, special=["<s>", "</s>", *(["<x>"] if name != "a" else [])])
            with_added(tokenizer, {"a": "<a>", "b": "<new>", "c": "<new>"}[name], special=name == "b")
            rows = tokenizer.get_vocab_size() + (3 if name == "c" else 0)
            save_model(HERE / "models" / kind / name, tokenizer, seed, rows=rows)


def merge_with_mergekit(case: Path) -> None:
    """Write the expected file of a case."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(case.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        run_merge(config, folder, MergeOptions(write_model_card=False, quiet=True))
        weights = {k: w for file in Path(folder).glob("*.safetensors") for k, w in load_file(file).items()}
        vocabulary = Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab()
    kept = {name: weights[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    metadata = {"made_with": "mergekit 0.1.5", "vocabulary": json.dumps(vocabulary, sort_keys=True)}
    save_file(kept, HERE / "expected" / f"{case.stem}.safetensors", metadata=metadata)


def main() -> None:
    """Models first, then every case."""
    make_models()
    (HERE / "expected").mkdir(exist_ok=True)
    os.chdir(HERE / "cases")  # mergekit takes model paths from the working directory
    for case in sorted(Path().glob("*.yml")):
        merge_with_mergekit(case)


if __name__ == "__main__":
    main()
