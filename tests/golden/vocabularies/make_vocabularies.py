"""Makes `models/` and `expected/`: what mergekit 0.1.5 writes for the configs in `cases/`.

    PYTHONPATH=tests python tests/golden/vocabularies/make_vocabularies.py

needs mergekit 0.1.5 with transformers 5 and sentencepiece. Each expected file holds the embedding and the head, and in
its metadata the vocabulary and the added tokens, since rows are compared token by token: mergekit numbers the tokens
that a base lacks in an order that is another one in every run. All cases have a `base_model`, or else mergekit draws
the model whose tokens keep their numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from safetensors.torch import load_file, save_file
from small_vocabularies import AS_OF_LLAMA, KINDS, TEXTS, save_model, train, train_sentencepiece
from tokenizers import AddedToken, Tokenizer

HERE = Path(__file__).parent


ADDED = {
    "a": [AddedToken("<a>")],
    "b": [AddedToken("<new>", special=True), AddedToken("on", lstrip=True)],
    "c": [AddedToken("<new>"), AddedToken("<a>", special=True), AddedToken("on", rstrip=True)],
}
"""They overlap with other flags, and `on` is a token of the models beside."""


def make_models() -> None:
    """Three of each kind, with special and added tokens that overlap."""
    shutil.rmtree(HERE / "models", ignore_errors=True)
    for kind in KINDS:
        for seed, (name, texts) in enumerate(TEXTS.items()):
            tokenizer = train(kind, texts, special=["<s>", "</s>", *(["<x>"] if name != "a" else [])])
            tokenizer.add_tokens(ADDED[name])
            rows = tokenizer.get_vocab_size() + (3 if name == "c" else 0)
            save_model(HERE / "models" / kind / name, tokenizer, seed, rows=rows)
    for seed, (name, texts) in enumerate(TEXTS.items()):
        make_sentencepiece_model(name, texts, seed)


def make_sentencepiece_model(name: str, texts: Iterable[str], seed: int) -> None:
    """One that has no tokenizer.json, as Llama 2 was published."""
    pieces = 256 + 40
    symbols = ["<x>"] if name != "a" else []
    model = train_sentencepiece(texts, pieces, user_defined_symbols=symbols, **AS_OF_LLAMA)
    added = {str(pieces + i): {**flags_of(token), "content": token.content} for i, token in enumerate(ADDED[name])}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "added_tokens_decoder": added}
    folder = save_model(HERE / "models" / "SentencePiece" / name, None, seed, rows=pieces + len(added))
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def flags_of(token: AddedToken) -> dict[str, bool]:
    """Those that tokenizer.json has."""
    return {name: getattr(token, name) for name in ("lstrip", "normalized", "rstrip", "single_word", "special")}


def merge_with_mergekit(case: Path) -> None:
    """Write the expected file of a case."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(case.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        run_merge(config, folder, MergeOptions(write_model_card=False, quiet=True))
        weights = {k: w for file in Path(folder).glob("*.safetensors") for k, w in load_file(file).items()}
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    kept = {name: weights[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    metadata = {
        "made_with": "mergekit 0.1.5",
        "vocabulary": json.dumps(tokenizer.get_vocab(), sort_keys=True),
        "added": json.dumps(
            {token.content: flags_of(token) for token in tokenizer.get_added_tokens_decoder().values()}
        ),
    }
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
