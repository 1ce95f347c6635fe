"""Small tokenizers of each kind, and models that have them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN = 8
KINDS = ("BPE", "WordPiece", "Unigram")
AS_OF_LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
"""How Llama's SentencePiece model is trained."""
TEXTS = {
    "a": ["the cat sat on the mat", "a cat and a hat"],
    "b": ["the weights of a model", "other models have other weights"],
    "c": ["hello world", "the world of models and cats"],
}
"""What the tokenizers of three models are trained on."""


def train(kind: str, texts: Iterable[str], size: int = 48, special: Sequence[str] = ("<s>", "</s>")) -> Tokenizer:
    """A tokenizer of so many tokens at most."""
    special = [*special, "<unk>"]
    options: dict[str, Any] = {"vocab_size": size, "show_progress": False, "special_tokens": special}
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer: Any = trainers.BpeTrainer(**options)
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokenizer.train_from_iterator(list(texts) * 3, trainer)
    return tokenizer


def train_sentencepiece(texts: Iterable[str], size: int = 300, kind: str = "bpe", **options: Any) -> bytes:
    """A SentencePiece model of so many tokens at most."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 10),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def train_ranks(texts: Iterable[str], merges: int = 40) -> bytes:
    """A file of tiktoken's ranks: all bytes, then what is merged, the most frequent pair of tokens first."""
    words = [[bytes([byte]) for byte in word.encode()] for text in texts for word in re.findall(" ?[^ ]+", text)]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        ranks[b"".join(max(pairs, key=pairs.__getitem__))] = len(ranks)
        words = [_merged(word, ranks) for word in words]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def _merged(word: list[bytes], ranks: Mapping[bytes, int]) -> list[bytes]:
    """With the last token wherever two of the word's make it."""
    made: list[bytes] = []
    newest = len(ranks) - 1
    for token in word:
        if made and ranks.get(made[-1] + token) == newest:
            made[-1] += token
        else:
            made.append(token)
    return made


def with_added(tokenizer: Tokenizer, *texts: str, **flags: Any) -> Tokenizer:
    """The tokenizer, which gets these added tokens."""
    tokenizer.add_tokens([AddedToken(text, **flags) for text in texts])
    return tokenizer


def tensors(rows: int, seed: int, *, tied: bool = False, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    """Of a Llama with one layer and so many tokens."""
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
        layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,),
        **{f"{layer}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"},
        **{f"{layer}mlp.{name}_proj.weight": (hidden, hidden) for name in ("gate", "up", "down")},
    }
    if not tied:
        shapes["lm_head.weight"] = (rows, hidden)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_model(
    folder: Path,
    tokenizer: Tokenizer | None,
    seed: int,
    *,
    rows: int | None = None,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A model folder. Without `rows` it has one for each token of the tokenizer."""
    rows = rows or (tokenizer.get_vocab_size() if tokenizer else 0)
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": str(dtype).removeprefix("torch."),
    } | config
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.to(dtype) for name, tensor in tensors(rows, seed, tied=tied).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(named | (settings or {})))
    return folder
