"""Tiktoken's ranks, a file with a token in base64 and its number on each line, as tokenizer.json.

The number of a token is also its rank: of all neighbours in a text that make a token together, those that make the one
with the lowest number are merged first. That is a BPE model which has every way to make a token among its merges. How
texts are split before that is not in the file, but in the model's code; so may be the special tokens.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergecore.errors import CheckpointError

_LINE = re.compile(rb"[A-Za-z0-9+/]+=*[ \t]+\d+")
_MARKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MOST_BYTES = 512
"""Of a token: four times as many as the longest in use has. All ways to cut it in two are tried."""
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


@dataclass(frozen=True, slots=True)
class _Code:
    """What a tokenizer's Python file says beside the ranks."""

    pattern: str
    """Of the pieces of a text that are not merged with each other."""
    special: tuple[str, ...] = ()
    """Tokens that are numbered after the ranks."""
    normalizer: str | None = None


_COMMON = _Code(_MARKS % r"\p{N}{1,3}")
"""Of GPT-4's tokenizer and Llama 3's, and what transformers takes for all others."""
_CODE = {
    "QWenTokenizer": _Code(
        _MARKS % r"\p{N}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
        "NFC",
    ),
}
"""By the class in tokenizer_config.json: those whose code is known here, as it is not run."""


def is_ranks(content: bytes) -> bool:
    """Whether a file is of this kind, and not a SentencePiece model, which can have the same name."""
    return _LINE.fullmatch(content[:1000].split(b"\n", 1)[0].rstrip()) is not None


def knows(tokenizer_class: object) -> bool:
    """Whether the code of such a tokenizer is known here."""
    return tokenizer_class in _CODE


def tokenizer_json(content: bytes, settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The file's tokenizer, with the added tokens that tokenizer_config.json has. Raises CheckpointError."""
    ranks = _parse(content, where)
    code = _CODE.get(str(settings.get("tokenizer_class")), _COMMON)
    names = {token: "".join(map(_BYTES.__getitem__, token)) for token in ranks}
    added = [{"id": i, "content": text, **_FLAGS} for i, text in enumerate(code.special, max(ranks.values()) + 1)]
    added += _added(settings, where)
    vocabulary = {names[token]: rank for token, rank in ranks.items()} | {one["content"]: one["id"] for one in added}
    split = {"type": "Split", "pattern": {"Regex": code.pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": code.normalizer and {"type": code.normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is not taken apart
            "vocab": vocabulary,
            "merges": [[names[left], names[right]] for left, right in _merges(ranks)],
        },
    }


def _parse(content: bytes, where: Path) -> dict[bytes, int]:
    """The number of each token, ascending."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError.at(
                f"{where}:{number}", f"should be a token in base64 and its number, found {line!r:.60}"
            ) from error
        if len(token) > _MOST_BYTES:
            raise CheckpointError.at(
                f"{where}:{number}", f"is a token of {len(token)} bytes, and none has more than {_MOST_BYTES}"
            )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """All ways to make a token of two others, in the order of the tokens that are made."""
    for token in ranks:
        ways = ((token[:i], token[i:]) for i in range(1, len(token)))
        yield from sorted(
            ((left, right) for left, right in ways if left in ranks and right in ranks),
            key=lambda way: (ranks[way[0]], ranks[way[1]]),
        )


def _added(settings: Mapping[str, Any], where: Path) -> list[dict[str, Any]]:
    """The tokens of `added_tokens_decoder`, by their numbers."""
    found = settings.get("added_tokens_decoder") or {}
    try:
        return [{"id": int(i), **_FLAGS, **token, "content": str(token["content"])} for i, token in found.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError.at(
            where.parent / "tokenizer_config.json", "`added_tokens_decoder` should have a token for each number"
        ) from error


def _letters_of_bytes() -> dict[int, str]:
    """For each byte the character that stands for it in byte-level models: itself where that can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printed)
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_BYTES = _letters_of_bytes()
