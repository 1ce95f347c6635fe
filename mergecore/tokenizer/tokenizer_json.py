"""tokenizer.json, the format of the tokenizers library: its tokens, and the same file with fewer or with more of them.

It is read and written as the JSON that it is. So nothing in it is lost that a version of the library doesn't know, and
neither that library nor transformers is needed to merge vocabularies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, TypeAlias

from mergecore.checkpoint.json_file import parse_json
from mergecore.errors import CheckpointError, PlanError

AddedToken: TypeAlias = Mapping[str, Any]
"""A token that is found in texts before the model sees them: `content`, `id` and flags."""
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""The flags of an added token of which nothing is known but its text."""
Merge: TypeAlias = tuple[str, str]
"""Two tokens of a BPE model that become one."""
MOST_ROWS = 1 << 22
"""Four times as many tokens as the largest vocabulary in use has. Memory is taken for each number below the largest."""


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer. It isn't changed once it is made."""

    where: str
    """The file, for messages."""
    data: Mapping[str, Any]
    """Its content."""

    @classmethod
    def parse(cls, content: bytes, where: str) -> TokenizerJson:
        """Raises CheckpointError where anything is not of the form that is relied on here."""
        data = parse_json(where, content)
        model = data.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
            raise CheckpointError.at(where, "has no `model` with a `vocab`, so it is no tokenizer")
        wrong = next(_wrong_parts(model, data.get("added_tokens") or []), None)
        if wrong is not None:
            raise CheckpointError.at(where, f"is no tokenizer that can be read: {wrong}")
        return cls(where, data)

    @property
    def kind(self) -> str:
        """BPE, WordPiece, Unigram or WordLevel. Old files leave it out."""
        model = self.data["model"]
        if model.get("type"):
            return str(model["type"])
        if isinstance(model["vocab"], list):
            return "Unigram"
        return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Number of each token of the model, added ones left out unless the model has them too."""
        found = self.data["model"]["vocab"]
        return found if isinstance(found, dict) else {piece: i for i, (piece, _) in enumerate(found)}

    @cached_property
    def added(self) -> dict[str, AddedToken]:
        """The added tokens by their text, in the order of their numbers."""
        entries = sorted(self.data.get("added_tokens") or (), key=lambda entry: entry["id"])
        return {entry["content"]: entry for entry in entries}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Number of each token. The model's own number goes first, as it does in the tokenizers library."""
        return {text: entry["id"] for text, entry in self.added.items()} | self.vocabulary

    @cached_property
    def texts(self) -> dict[int, str]:
        """The token of each number."""
        return {i: text for text, i in self.ids.items()}

    @property
    def merges(self) -> Iterator[Merge]:
        """Of a BPE model, in the order in which they are applied. They are written as lists, or as text."""
        for merge in self.data["model"].get("merges") or ():
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            yield left, right

    @property
    def prefix(self) -> str:
        """With which the tokens of a BPE model begin that go on with a word; a merge drops it from the right one."""
        return self.data["model"].get("continuing_subword_prefix") or ""

    def below(self, size: int) -> TokenizerJson:
        """Without the tokens whose number is `size` or more: a model of so many rows knows nothing of them."""
        if all(i < size for i in self.ids.values()):
            return self
        model = dict(self.data["model"])
        vocabulary = {text: i for text, i in self.vocabulary.items() if i < size}
        model["vocab"] = vocabulary if isinstance(model["vocab"], dict) else model["vocab"][:size]
        if "merges" in model:
            both = zip(self.merges, model["merges"], strict=True)
            model["merges"] = [
                written
                for (left, right), written in both
                if left in vocabulary and right in vocabulary and left + right.removeprefix(self.prefix) in vocabulary
            ]
        added = [entry for text, entry in self.added.items() if self.ids[text] < size]
        return TokenizerJson(self.where, {**self.data, "model": model, "added_tokens": added})

    def extended(
        self, regular: Mapping[str, float | None], merges: Iterable[Merge], added: Sequence[AddedToken]
    ) -> TokenizerJson:
        """With more tokens, which are numbered as they come after the largest number there is.

        regular: tokens of the model, and the score of each where a Unigram model says one. merges: of a BPE model, to
        be applied after its own. added: without numbers. They take the place of added tokens of the same text, and a
        token of the model becomes an added one, too. Raises PlanError.
        """
        first = max(self.ids.values(), default=-1) + 1
        end = first + len(regular)
        numbers = dict(zip(regular, range(first, end), strict=True))
        entries = dict(self.added)
        next_number = count(end)
        for token in added:
            text = token["content"]
            known = self.ids.get(text, numbers.get(text))
            entries[text] = {**token, "id": next(next_number) if known is None else known}
        in_order = sorted(entries.values(), key=lambda entry: int(entry["id"]))
        model = dict(self.data["model"])
        inside = {text: (entries[text]["id"], None) for text in self._inside(in_order, end if regular else 0)}
        model["vocab"] = self._vocabulary({**inside, **{text: (numbers[text], regular[text]) for text in regular}})
        if "merges" in model:
            model["merges"] = _written(model["merges"], list(merges))
        return TokenizerJson(self.where, {**self.data, "model": model, "added_tokens": in_order})

    def _inside(self, added: Sequence[AddedToken], end: int) -> list[str]:
        """The added tokens that the model has to have, too, so that they are loaded with the numbers they have.

        The library numbers those that the model lacks itself, one after the other, after the model's tokens. So it must
        have those that come before its last token; and all, where their numbers leave a gap.
        """
        outside = [entry for entry in added if entry["content"] not in self.vocabulary]
        before = [entry["content"] for entry in outside if entry["id"] < end]
        after = [entry for entry in outside if entry["id"] >= end]
        first = max(len(self.vocabulary), end)
        if [entry["id"] for entry in after] != list(range(first, first + len(after))):
            return [*before, *(entry["content"] for entry in after)]
        return before

    def _vocabulary(self, more: Mapping[str, tuple[int, float | None]]) -> dict[str, int] | list[Any]:
        """The model's tokens and more of them, each with its number and score."""
        old = self.data["model"]["vocab"]
        if isinstance(old, dict):
            return {**old, **{text: i for text, (i, _) in more.items()}}
        lowest = min((score for _, score in old), default=0.0)
        pieces = list(old)
        for text, (i, score) in sorted(more.items(), key=lambda item: item[1][0]):
            if i != len(pieces):
                raise PlanError.at(self.where, f"the token {text!r} has the number {i}, but there is no {len(pieces)}")
            pieces.append([text, lowest if score is None else score])
        return pieces


def _wrong_parts(model: Mapping[str, Any], added: Any) -> Iterator[str]:
    """What is not as the tokenizers library writes it. There may be a million tokens, so each is looked at briefly."""
    vocab, merges = model["vocab"], model.get("merges") or []
    if isinstance(vocab, dict):
        if not _are_numbers(vocab.values()):
            yield f"each token in `vocab` should have a number, from 0 to {MOST_ROWS - 1}"
    elif len(vocab) > MOST_ROWS or not all(map(_is_scored, vocab)):
        yield f"a list in `vocab` should hold pairs of a token and its score, {MOST_ROWS} at most"
    if not isinstance(merges, list) or not all(map(_is_merge, merges)):
        yield "each of its `merges` should be two tokens"
    if not isinstance(model.get("continuing_subword_prefix") or "", str):
        yield "`continuing_subword_prefix` should be text"
    if not isinstance(added, list) or not all(
        isinstance(one, dict) and type(one.get("content")) is str for one in added
    ):
        yield "each of its `added_tokens` should have its text as `content`"
    elif not _are_numbers([one.get("id") for one in added]):
        yield f"each of its `added_tokens` should have a number as `id`, from 0 to {MOST_ROWS - 1}"


def _are_numbers(values: Collection[Any]) -> bool:
    """Whether all are numbers of tokens."""
    return not values or ({*map(type, values)} == {int} and min(values) >= 0 and max(values) < MOST_ROWS)


def _is_scored(entry: Any) -> bool:
    return type(entry) is list and len(entry) == 2 and type(entry[0]) is str and type(entry[1]) in (int, float)


def _is_merge(merge: Any) -> bool:
    parts = merge.split(" ", 1) if type(merge) is str else merge
    return type(parts) is list and len(parts) == 2 and type(parts[0]) is type(parts[1]) is str


def _written(old: Sequence[Any], new: Sequence[Merge]) -> list[Any]:
    """All merges in the form of the old ones; as lists, where a token holds a space."""
    if not old or not isinstance(old[0], str):
        return [*old, *new]
    if any(" " in part for merge in new for part in merge):
        return [*(merge.split(" ", 1) for merge in old), *new]
    return [*old, *map(" ".join, new)]
