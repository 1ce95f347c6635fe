"""One vocabulary of several: the base's tokens with their numbers, then what the other models have beside them.

Tokens of a model become tokens of the output's model, and where both are of the kind BPE, the merges that make them are
applied after the base's. mergekit makes all of them added tokens, which are found in a text before the model sees it:
there a token `the` of another model takes `other` apart, and the base's own words are not what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergecore.errors import some_of
from mergecore.tokenizer.tokenizer_json import AddedToken, Merge, TokenizerJson


@dataclass(frozen=True, slots=True)
class Donor:
    """A model whose tokens are taken."""

    name: str
    tokenizer: TokenizerJson
    size: int
    """Rows of its embedding. Tokens with larger numbers don't count."""

    @property
    def added(self) -> dict[str, AddedToken]:
        """Its added tokens."""
        ids = self.tokenizer.ids
        return {text: token for text, token in self.tokenizer.added.items() if ids[text] < self.size}


def union(base: Donor, others: Sequence[Donor]) -> tuple[TokenizerJson, list[str]]:
    """The vocabulary of all models, and what the user should know of it.

    First come the tokens of the models, then the added ones, each in the order of the donors and of their numbers
    there. An added token with several sets of flags keeps the first one.
    """
    donors = [donor for donor in others if donor.tokenizer is not base.tokenizer or donor.size > base.size]
    start = base.tokenizer.below(base.size)
    regular = _regular(start, donors)
    added, notes = _added(start, donors, base.name)
    if regular and any(donor.tokenizer.kind != start.kind for donor in donors):
        each = ", ".join(f"{donor.tokenizer.kind} in {donor.name}" for donor in (base, *donors))
        notes.append(
            f"the tokenizers are of different kinds ({each}): the tokens that the base's lacks have rows, but most "
            "of them won't be found in texts"
        )
    if not regular and not added:
        return start, notes
    return start.extended(regular, _merges(start, donors, regular), list(added.values())), notes


def _regular(start: TokenizerJson, donors: Sequence[Donor]) -> dict[str, float | None]:
    """Tokens of models, with the score that their Unigram model gives them."""
    found: dict[str, float | None] = {}
    for donor in donors:
        scores = dict(donor.tokenizer.data["model"]["vocab"]) if donor.tokenizer.kind == start.kind == "Unigram" else {}
        added = donor.tokenizer.added
        for text, i in sorted(donor.tokenizer.vocabulary.items(), key=lambda item: item[1]):
            if i < donor.size and text not in added and text not in start.ids:
                found.setdefault(text, scores.get(text))
    return found


def _added(start: TokenizerJson, donors: Sequence[Donor], base: str) -> tuple[dict[str, AddedToken], list[str]]:
    """Added tokens that `start` doesn't have as such, and whose flags differ."""
    found: dict[str, AddedToken] = {}
    first = dict.fromkeys(start.added, base)
    notes = []
    for donor in donors:
        added = donor.added
        in_model = [text for text in added if text not in first and text in start.vocabulary]
        if in_model:
            what = f"added tokens of {donor.name} are tokens of the model in {base}, and are found before all else now"
            notes.append(f"{what} {_listed(in_model)}")
        for text, token in added.items():
            if text not in first:
                found[text] = token
                first[text] = donor.name
            elif _flags(token) != _flags(found.get(text) or start.added[text]):
                notes.append(
                    f"the added token {text!r} has other flags in {donor.name} than in {first[text]}, whose count"
                )
    return found, notes


def _flags(token: AddedToken) -> dict[str, object]:
    return {key: value for key, value in token.items() if key != "id"}


def _merges(start: TokenizerJson, donors: Sequence[Donor], regular: Mapping[str, float | None]) -> list[Merge]:
    """The merges of BPE models that make one of the new tokens of tokens that are there."""
    if start.kind != "BPE":
        return []
    known, prefix = start.ids.keys() | regular.keys(), start.prefix
    found: dict[Merge, None] = {}
    for donor in donors:
        for merge in donor.tokenizer.merges if donor.tokenizer.kind == "BPE" else ():
            left, right = merge
            if left + right.removeprefix(prefix) in regular and left in known and right in known:
                found[merge] = None
    return list(found)


def without_rows(donor: Donor) -> str | None:
    """What the user should know of tokens that the tokenizer has and the model doesn't."""
    left_out = [text for text, i in donor.tokenizer.ids.items() if i >= donor.size]
    if not left_out:
        return None
    return f"tokens without a row in {donor.name} are left out {_listed(left_out)}"


def _listed(texts: Sequence[str]) -> str:
    """How many tokens, and a few of them."""
    return f"({len(texts)}): {some_of(map(repr, texts))}"
