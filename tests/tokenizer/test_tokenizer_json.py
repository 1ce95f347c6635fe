"""tokenizer.json with fewer or more tokens is what the tokenizers library reads as such."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_vocabularies import KINDS, TEXTS, train, with_added
from tokenizers import Tokenizer

from mergecore import CheckpointError, PlanError
from mergecore.tokenizer.tokenizer_json import PLAIN, TokenizerJson


def parse(tokenizer: Tokenizer) -> TokenizerJson:
    return TokenizerJson.parse(tokenizer.to_str().encode(), "tokenizer.json")


def load(tokenizer: TokenizerJson) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer.data))


def of(model: dict[str, Any], added: tuple[tuple[str, int], ...] = ()) -> TokenizerJson:
    entries = [{**PLAIN, "content": text, "id": i} for text, i in added]
    return TokenizerJson("tokenizer.json", {"version": "1.0", "model": model, "added_tokens": entries})


def bpe(vocabulary: str, merges: str = "", **more: Any) -> dict[str, Any]:
    ids = {text: i for i, text in enumerate(vocabulary.split())}
    return {"type": "BPE", "vocab": ids, "merges": [merge.replace("+", " ") for merge in merges.split()], **more}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read(kind: str) -> None:
    tokenizer = with_added(train(kind, TEXTS["a"]), "<new>", special=True)
    found = parse(tokenizer)
    assert found.kind == kind
    assert found.ids == tokenizer.get_vocab()
    assert list(found.added) == ["<s>", "</s>", "<unk>", "<new>"]
    assert found.texts[found.ids["<new>"]] == "<new>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [5, 20, -1, 0])
def test_without_the_last_tokens(kind: str, left: int) -> None:
    tokenizer = with_added(train(kind, TEXTS["a"]), "<new>")
    size = left if left > 0 else tokenizer.get_vocab_size() + left
    found = load(parse(tokenizer).below(size))
    assert found.get_vocab() == {text: i for text, i in tokenizer.get_vocab().items() if i < size}


@pytest.mark.parametrize("kind", KINDS)
def test_with_more_tokens(kind: str) -> None:
    tokenizer = with_added(train(kind, TEXTS["a"]), "<new>", lstrip=True)
    n = tokenizer.get_vocab_size()
    more = parse(tokenizer).extended(
        {"xx": -3.0, "yy": None}, (), [{**PLAIN, "content": "<q>"}, {**PLAIN, "content": "<new>"}]
    )
    found = load(more)
    assert found.get_vocab() == more.ids == tokenizer.get_vocab() | {"xx": n, "yy": n + 1, "<q>": n + 2}
    added = {token.content: token for token in found.get_added_tokens_decoder().values()}
    assert added.keys() == {"<s>", "</s>", "<unk>", "<new>", "<q>"}
    assert not added["<new>"].lstrip
    assert {text for text in ("xx", "<new>", "<q>") if text in more.vocabulary} == {"xx", "<new>"}


def test_only_added_tokens_leave_the_model_as_it_is() -> None:
    found = of(bpe("a b"), added=(("<x>", 2),)).extended({}, (), [{**PLAIN, "content": "<y>"}])
    assert found.vocabulary == {"a": 0, "b": 1}
    assert load(found).get_vocab() == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}


def test_numbers_with_a_gap_are_kept() -> None:
    found = of(bpe("a b"), added=(("<x>", 7),)).extended({}, (), [{**PLAIN, "content": "<y>"}])
    assert load(found).get_vocab() == found.ids == {"a": 0, "b": 1, "<x>": 7, "<y>": 8}


def test_a_unigram_model_has_no_gaps() -> None:
    unigram = of({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}, added=(("<x>", 5),))
    with pytest.raises(PlanError, match="tokenizer.json: the token '<x>' has the number 5, but there is no 2"):
        unigram.extended({"b": -2.0}, (), [])


def test_a_unigram_token_without_a_score_gets_the_lowest() -> None:
    unigram = of({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]})
    found = unigram.extended({"b": -2.0, "c": None}, (), [])
    assert found.data["model"]["vocab"][2:] == [["b", -2.0], ["c", -1.0]]


@pytest.mark.parametrize("form", ["text", "lists"])
def test_merges_keep_their_form(form: str) -> None:
    model = bpe("a b c ab", "a+b")
    if form == "lists":
        model["merges"] = [["a", "b"]]
    found = of(model).extended({"abc": None}, [("ab", "c")], [])
    assert found.data["model"]["merges"] == (["a b", "ab c"] if form == "text" else [["a", "b"], ("ab", "c")])
    assert load(found).encode("abcab").tokens == ["abc", "ab"]


def test_a_token_with_a_space_makes_merges_lists() -> None:
    found = of(bpe("a b ab", "a+b")).extended({" ": None, "b ": None}, [("b", " ")], [])
    assert found.data["model"]["merges"] == [["a", "b"], ("b", " ")]
    assert load(found).encode("abb ").tokens == ["ab", "b "]


def test_merges_of_tokens_that_are_gone_are_left_out() -> None:
    found = of(bpe("a ##b ##c a##b ab abc", "a+##b ab+##c", continuing_subword_prefix="##")).below(5)
    assert found.data["model"]["merges"] == ["a ##b"]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"vocab": {"a": 0}, "merges": []}, "BPE"),
        ({"vocab": {"a": 0}, "max_input_chars_per_word": 100}, "WordPiece"),
        ({"vocab": [["a", 0.0]]}, "Unigram"),
        ({"vocab": {"a": 0}}, "WordLevel"),
    ],
)
def test_old_files_do_not_say_their_kind(model: dict[str, Any], kind: str) -> None:
    assert of(model).kind == kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "tokenizer.json: is not valid JSON: Expecting property name"),
        (b"\xff", "tokenizer.json: is not valid JSON"),
        (b"[" * 100_000, "tokenizer.json: is not valid JSON: nested too deeply"),
        (b"[]", "tokenizer.json: should be a JSON object"),
        (b'{"model": {"type": "BPE"}}', "tokenizer.json: has no `model` with a `vocab`, so it is no tokenizer"),
        (b'{"model": {"vocab": {"\\ud83d": 0}}}', "tokenizer.json: holds an escaped character that is not Unicode"),
    ],
)
def test_what_is_no_tokenizer(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TokenizerJson.parse(content, "tokenizer.json")


NUMBER = "each token in `vocab` should have a number, from 0 to 4194303"
SCORED = "a list in `vocab` should hold pairs of a token and its score, 4194304 at most"
MERGES = "each of its `merges` should be two tokens"
TEXT = "each of its `added_tokens` should have its text as `content`"
ID = "each of its `added_tokens` should have a number as `id`, from 0 to 4194303"


@pytest.mark.parametrize(
    ("model", "added", "message"),
    [
        *(({"vocab": {"a": number}}, [], NUMBER) for number in (-1, 1.5, True, None, "1", [], 1 << 22, 10**30)),
        *(({"vocab": [piece]}, [], SCORED) for piece in (None, "a", ["a"], ["a", 1, 2], [1, 1], ["a", "1"])),
        *(({"vocab": {}, "merges": merges}, [], MERGES) for merges in ("a b", {"a": "b"}, ["a"], [["a", 1]], [None])),
        *(({"vocab": {}}, added, TEXT) for added in (3, {"a": 1}, ["a"], [{"id": 0}], [{"id": 0, "content": None}])),
        *(({"vocab": {}}, [{"content": "a", "id": number}], ID) for number in (None, "0", -1, True, 1 << 22)),
        ({"vocab": {}, "continuing_subword_prefix": 3}, [], "`continuing_subword_prefix` should be text"),
    ],
)
def test_parts_of_another_form(model: dict[str, Any], added: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        TokenizerJson.parse(json.dumps({"model": model, "added_tokens": added}).encode(), "tokenizer.json")
    assert str(caught.value) == f"tokenizer.json: is no tokenizer that can be read: {message}"
