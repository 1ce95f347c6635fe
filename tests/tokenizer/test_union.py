"""One vocabulary of several: which tokens, with which numbers, and how texts are cut into them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabularies import KINDS, TEXTS, train, with_added
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mergecore.tokenizer.tokenizer_json import TokenizerJson
from mergecore.tokenizer.union import Donor, union, without_rows


def donor(tokenizer: Tokenizer, name: str = "m", size: int | None = None) -> Donor:
    found = TokenizerJson.parse(tokenizer.to_str().encode(), name)
    return Donor(name, found, len(found.ids) if size is None else size)


def load(tokenizer: TokenizerJson) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer.data))


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_keeps_its_numbers_and_the_others_follow(kind: str) -> None:
    a, b, c = (with_added(train(kind, TEXTS[name]), f"<{name}>", "<new>") for name in "abc")
    made, notes = union(donor(a), [donor(b), donor(c)])
    assert notes == []
    base = a.get_vocab()
    assert {text: made.ids[text] for text in base} == base
    new = sorted(made.ids.keys() - base.keys(), key=made.ids.__getitem__)

    def own(tokenizer: Tokenizer) -> list[str]:
        ids = tokenizer.get_vocab()
        return sorted((text for text in ids if not text.startswith("<")), key=ids.__getitem__)

    in_order = dict.fromkeys([*own(b), *own(c), "<b>", "<c>"])
    assert new == [text for text in in_order if text not in base]
    assert load(made).get_vocab() == made.ids
    assert sorted(made.ids.values()) == list(range(len(made.ids)))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back(kind: str) -> None:
    a, b, c = (train(kind, TEXTS[name], size=120) for name in "abc")
    made = load(union(donor(a), [donor(b), donor(c)])[0])
    for texts in TEXTS.values():
        for text in texts:
            assert made.decode(made.encode(text).ids) == text


def test_bpe_tokens_are_made_by_merges_and_do_not_take_other_words_apart() -> None:
    """`the` of another model isn't found in `other`, as it would be as an added token."""
    base, other = (train("BPE", [text] * 3, size=60) for text in ("some other mother", "the theory"))
    made = load(union(donor(base), [donor(other)])[0])
    assert "the" in other.get_vocab()
    for text in ("some other mother", " other", "mother"):
        assert made.encode(text).tokens == base.encode(text).tokens
    assert made.encode("theory").tokens == other.encode("theory").tokens


def test_an_extended_vocabulary_cuts_texts_as_its_model_does() -> None:
    """A model whose tokenizer is the base's with further merges: the usual way to add a language."""
    base = train("BPE", TEXTS["a"], size=40)
    data = json.loads(base.to_str())
    longer = json.loads(train("BPE", ["hat mat sat cats and hats"] * 3, size=200).to_str())["model"]["merges"]
    vocabulary = data["model"]["vocab"]
    for left, right in longer:
        if left in vocabulary and right in vocabulary and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            data["model"]["merges"].append([left, right])
    extended = Tokenizer.from_str(json.dumps(data))
    assert extended.get_vocab_size() > base.get_vocab_size()
    made = load(union(donor(base), [donor(extended)])[0])
    assert made.get_vocab() == extended.get_vocab()
    assert made.encode("cats sat and hats").tokens == extended.encode("cats sat and hats").tokens


def test_the_first_flags_of_an_added_token_count() -> None:
    a, b = train("BPE", TEXTS["a"]), with_added(train("BPE", TEXTS["b"]), "<new>", lstrip=True)
    c = with_added(train("BPE", TEXTS["c"]), "<new>", rstrip=True)
    made, notes = union(donor(a, "a"), [donor(b, "b"), donor(c, "c")])
    assert made.added["<new>"]["lstrip"]
    assert not made.added["<new>"]["rstrip"]
    assert notes == ["the added token '<new>' has other flags in c than in b, whose count"]


def test_a_token_that_another_model_has_as_added_becomes_one() -> None:
    base = Tokenizer(models.BPE({"a": 0, "<x>": 1}, []))
    other = with_added(Tokenizer(models.BPE({"a": 0}, [])), "<x>", special=True)
    made, notes = union(donor(base, "a"), [donor(other, "b"), donor(other, "c")])
    assert notes == ["added tokens of b are tokens of the model in a, and are found before all else now (1): '<x>'"]
    assert made.ids == {"a": 0, "<x>": 1}
    assert load(made).encode("a<x>a").tokens == ["a", "<x>", "a"]


def test_kinds_that_do_not_fit_are_told() -> None:
    made, notes = union(donor(train("BPE", TEXTS["a"]), "a"), [donor(train("Unigram", TEXTS["b"]), "b")])
    assert notes == [
        "the tokenizers are of different kinds (BPE in a, Unigram in b): the tokens that the base's lacks have rows, "
        "but most of them won't be found in texts"
    ]
    assert load(made).get_vocab() == made.ids


def test_tokens_without_a_row_do_not_count() -> None:
    a, b = train("BPE", TEXTS["a"]), with_added(train("BPE", TEXTS["b"]), "<p>", "<q>")
    n = b.get_vocab_size()
    made, _ = union(donor(a), [donor(b, size=n - 1)])
    assert "<p>" in made.ids
    assert "<q>" not in made.ids
    assert without_rows(donor(b, "b", n - 1)) == "tokens without a row in b are left out (1): '<q>'"
    assert without_rows(donor(b)) is None
    base, _ = union(donor(b, size=n - 2), [])
    assert load(base).get_vocab() == {text: i for text, i in b.get_vocab().items() if i < n - 2}


@st.composite
def models_of_tokens(draw) -> models.Model:
    """Any tokens of a few letters, as a model of any kind."""
    letters = draw(st.lists(st.sampled_from("abcdeé▁Ġ "), min_size=1, unique=True))
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 12))):
        left, right = (draw(st.sampled_from(list(vocabulary))) for _ in range(2))
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    kind = draw(st.sampled_from(KINDS))
    if kind == "BPE":
        return models.BPE(vocabulary, merges)
    if kind == "WordPiece":
        return models.WordPiece(vocabulary, unk_token=letters[0])
    return models.Unigram([(text, -float(i)) for text, i in vocabulary.items()], unk_id=0)


@st.composite
def vocabularies(draw) -> Tokenizer:
    """A tokenizer of any model, and added tokens that may be tokens of the model, too."""
    tokenizer = Tokenizer(draw(models_of_tokens()))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(" ", "isolated"), decoders.Fuse()
    flags: dict[str, Any] = draw(st.fixed_dictionaries({"special": st.booleans(), "normalized": st.booleans()}))
    return with_added(tokenizer, *draw(st.lists(st.sampled_from(["<x>", "<y>", "ab", "a"]), unique=True)), **flags)


@settings(max_examples=100)
@given(all_models=st.lists(vocabularies(), min_size=1, max_size=3), data=st.data())
def test_any_vocabularies(all_models: list[Tokenizer], data) -> None:
    base, *others = (
        donor(model, f"m{i}", data.draw(st.integers(max(1, model.get_vocab_size() - 3), model.get_vocab_size() + 2)))
        for i, model in enumerate(all_models)
    )
    made, _ = union(base, others)
    loaded = load(made)
    assert loaded.get_vocab() == made.ids
    assert union(base, others)[0].data == made.data
    assert len(set(made.ids.values())) == len(made.ids)
    kept = {text: i for text, i in base.tokenizer.ids.items() if i < base.size}
    assert made.ids.items() >= kept.items()
    expected = {text for one in (base, *others) for text, i in one.tokenizer.ids.items() if i < one.size}
    assert made.ids.keys() == expected
    added = {text for one in (base, *others) for text in one.tokenizer.added if one.tokenizer.ids[text] < one.size}
    assert set(made.added) == added
    assert made.added.keys() == {token.content for token in loaded.get_added_tokens_decoder().values()}
