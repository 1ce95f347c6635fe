"""Files of tiktoken's ranks become a tokenizer.json that cuts texts as tiktoken does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabularies import TEXTS, train_ranks
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from mergecore import CheckpointError
from mergecore.tokenizer import tiktoken_ranks

WHERE = Path("model/tokenizer.model")
RANKS = train_ranks([*TEXTS["a"], *TEXTS["b"], "1234 12 1234 été"])
STRANGE = ["", " ", "  two  spaces ", "tab\there\r\n\nnew line", "Ünïcode été 你好 🦙", "a1234b12 I'M don't", "<|x|>"]


def made(content: bytes = RANKS, **settings: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tiktoken_ranks.tokenizer_json(content, settings, WHERE)))


def of_tiktoken(pattern: str, content: bytes = RANKS, **special: int) -> tiktoken.Encoding:
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@settings(max_examples=200)
@given(text=st.one_of(st.text(max_size=30), st.text("acehmostw 1'\n", max_size=30), st.sampled_from(STRANGE)))
def test_texts_are_cut_as_by_tiktoken(text: str) -> None:
    tokenizer = made()
    ids = tokenizer.encode(text).ids
    assert ids == of_tiktoken(TikTokenConverter().pattern).encode(text)
    assert tokenizer.decode(ids) == text


def test_it_is_the_model_that_transformers_makes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(RANKS)
    theirs = json.loads(TikTokenConverter(str(tmp_path / "tokenizer.model")).converted().to_str())
    assert json.loads(made().to_str())["model"] == theirs["model"]


def test_added_tokens_are_in_the_settings() -> None:
    n = len(RANKS.splitlines())
    begin, end = {"content": "<|begin|>", "special": True}, {"content": "<|end|>", "special": False, "lstrip": True}
    tokenizer = made(added_tokens_decoder={str(n): begin, str(n + 5): end})
    assert tokenizer.encode("<|begin|>the <|end|> cat").tokens == ["<|begin|>", "the", " <|end|>", "Ġcat"]
    assert [tokenizer.token_to_id(token) for token in ("<|begin|>", "<|end|>")] == [n, n + 5]
    assert [(t.content, t.special) for t in tokenizer.get_added_tokens_decoder().values()] == [
        ("<|begin|>", True), ("<|end|>", False),
    ]  # fmt: skip


def test_what_the_code_of_qwen_says() -> None:
    """Digits one by one, accents joined to their letters, and its special tokens after the ranks."""
    tokenizer = made(tokenizer_class="QWenTokenizer")
    n = len(RANKS.splitlines())
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]
    assert made().encode("1234").tokens != ["1", "2", "3", "4"]
    assert tokenizer.encode("e\u0301te\u0301").ids == tokenizer.encode("été").ids
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert [tokenizer.token_to_id(token) - n for token in special] == [0, 1, 2, 3, 207]
    assert tokenizer.get_vocab_size() == n + 208
    assert tokenizer.encode("the<|im_end|>").tokens == ["the", "<|im_end|>"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (RANKS, True),
        (b"IQ== 0", True),
        (b"IQ== 0\r\nIg== 1", True),
        (b"", False),
        (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00", False),
        (b'{"a": 0}', False),
        (b"[PAD]\n[UNK]", False),
        (b"IQ== zero", False),
    ],
)
def test_which_files_are_ranks(content: bytes, found: bool) -> None:
    assert tiktoken_ranks.is_ranks(content) is found


@pytest.mark.parametrize("line", [b"IQ== one", b"IQ==", b"I Q 1", b"\xff 1"])
def test_broken_lines(line: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        made(b"IA== 0\n" + line + b"\nIg== 2\n")
    assert str(caught.value) == f"{WHERE}:2: should be a token in base64 and its number, found {line!r}"


def test_a_token_that_is_too_long() -> None:
    with pytest.raises(CheckpointError) as caught:
        made(b"IA== 0\n" + base64.b64encode(b"x" * 513) + b" 1\n")
    assert str(caught.value) == f"{WHERE}:2: is a token of 513 bytes, and none has more than 512"


@pytest.mark.parametrize("decoder", [["<x>"], {"one": {"content": "<x>"}}, {"300": "<x>"}, {"300": {}}])
def test_broken_settings(decoder: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        made(added_tokens_decoder=decoder)
    assert str(caught.value) == (
        f"{WHERE.parent / 'tokenizer_config.json'}: `added_tokens_decoder` should have a token for each number"
    )
