"""Which row of which model each row of the new embeddings is, for each model that is merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from mergecore.checkpoint.gathered_rows import MEAN, RowMap
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.tokenizer import ModelToken, Token, ZeroToken
from mergecore.errors import PlanError, Problem, some_of
from mergecore.tokenizer.tokenizer_json import MOST_ROWS

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Owner:
    """A model, and the tokens that it has rows of."""

    name: str
    ids: Mapping[str, int]
    size: int
    """Rows of its embedding. Tokens with larger numbers have none."""

    def row_of(self, token: str | int) -> int | None:
        """The row of a token, by its text or its number; None if there is none."""
        row = token if isinstance(token, int) else self.ids.get(token, self.size)
        return row if row < self.size else None


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows that a model lacks, and what they are instead."""

    source: str
    """The name of a model, `mean of several models`, or `zero`."""
    count: int
    examples: tuple[str, ...]
    """A few of the tokens."""

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} from {self.source} ({', '.join(map(repr, self.examples))}{more})"


@dataclass(frozen=True, slots=True)
class ModelTokens:
    """What one model has of the output's vocabulary."""

    name: str
    has: int
    adds: int
    """Tokens that neither the base nor a model before it has."""
    filled: tuple[Filled, ...]

    def __str__(self) -> str:
        rest = f"; other rows: {', '.join(map(str, self.filled))}" if self.filled else ""
        return f"{self.name}: has {self.has}, adds {self.adds}{rest}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Where all rows come from."""

    maps: tuple[RowMap, ...]
    """Of each model. Their parts are the models."""
    models: tuple[ModelTokens, ...]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def rows_of(
    ids: Mapping[str, int],
    owners: Sequence[Owner],
    models: Sequence[ModelReference],
    base: int | None,
    tokens: Mapping[str, Token],
    pad_to_multiple_of: int,
    where: Mapping[str, str],
) -> Rows:
    """The rows of all models' embeddings in the output's vocabulary, `ids`.

    A token that a model lacks gets the row that `tokens` names; else that of the base model, if it has the token; else
    the mean of the rows of the models that have it, or zeros if there is none. Rows that belong to no token, such as
    those that round their number up, are the mean of all others of that model. `where` are the places of `tokens` in
    the config. Raises PlanError for more rows than memory could be taken for.
    """
    n = max(ids.values(), default=-1) + 1
    n_rows = -(-n // pad_to_multiple_of) * pad_to_multiple_of
    if n_rows > MOST_ROWS:
        what = f"the embeddings would have {n_rows} rows, and {MOST_ROWS} are the most"
        raise PlanError.at("tokenizer", what, "is `pad_to_multiple_of` what you mean?")
    table = _Table(list(ids), np.fromiter(ids.values(), np.int64, len(ids)), n_rows, owners, base)
    notes, problems = [], []
    for text, token in tokens.items():
        wrong = table.override(text, ids[text], token, models)
        if not table.is_needed[ids[text]]:
            notes.append(f"all models have the token {text!r}, so its source has no effect without `force: true`")
        elif wrong:
            problems.append(Problem(where[text], *wrong))
    is_zero = table.is_needed & ~table.default.any(axis=0)
    nowhere = [text for text, i in ids.items() if is_zero[i]]
    unasked = [text for text in nowhere if not isinstance(getattr(tokens.get(text), "source", None), ZeroToken)]
    if unasked:
        shown = some_of(map(repr, unasked))
        notes.append(f"tokens that no model has a row for get zeros ({len(unasked)}): {shown}")
    maps = tuple(table.row_map(i) for i in range(len(owners)))
    return Rows(maps, tuple(table.summary()), tuple(notes), tuple(problems))


class _Table:
    """Tokens by models. Everything is an array of [models, rows of the output]."""

    def __init__(
        self,
        texts: Sequence[str],
        numbers: NDArray[np.int64],
        n_rows: int,
        owners: Sequence[Owner],
        base: int | None,
    ) -> None:
        self._texts = dict(zip(numbers.tolist(), texts, strict=True))
        self._owners = owners
        self._base = base
        self._rows = np.full((len(owners), n_rows), -1, np.int32)
        for i, owner in enumerate(owners):
            same = next((j for j in range(i) if owners[j].ids is owner.ids), None)
            if same is None:
                found = np.fromiter(map(owner.ids.get, texts, repeat(-1)), np.int32, len(texts))
                self._rows[i, numbers] = found
            else:
                self._rows[i] = self._rows[same]
        self._has = (self._rows >= 0) & (self._rows < np.array([[owner.size] for owner in owners]))
        self._nameless = np.ones(n_rows, bool)
        self._nameless[numbers] = False
        self._forced = np.zeros(n_rows, bool)
        self._default_rows = self._rows.copy()
        self.default = self._has.copy()
        """Whose rows a model takes that lacks the token."""
        if base is not None:
            self.default[:, self._has[base]] = False
            self.default[base, self._has[base]] = True

    @property
    def is_needed(self) -> NDArray[np.bool_]:
        """[rows] Where a model takes the default."""
        needed: NDArray[np.bool_] = self._forced | ~self._has.all(axis=0)
        return needed

    def override(
        self, text: str, number: int, token: Token, models: Sequence[ModelReference]
    ) -> tuple[str, str] | None:
        """Take a token's row from where `tokens` says. Gives what is wrong with that, and a hint."""
        self._forced[number] = token.force
        source = token.source
        if source is None:
            return None
        self.default[:, number] = False
        if isinstance(source, ZeroToken):
            return None
        reference = source.model if isinstance(source, ModelToken) else source
        if reference not in models:
            what = f"the row of {text!r} should come from {reference}, which is not merged"
            return what, f"the models are: {', '.join(map(str, models))}"
        model = models.index(reference)
        owner = self._owners[model]
        wanted: str | int = text
        if isinstance(source, ModelToken):
            wanted = source.token if source.token is not None else source.token_id or 0
        row = owner.row_of(wanted)
        if row is None:
            what = f"the row of {text!r} should be that of token {wanted!r} of {reference}, which has no such token"
            return what, f"it has {owner.size} rows" if isinstance(wanted, int) else ""
        self.default[model, number] = True
        self._default_rows[model, number] = row
        return None

    def row_map(self, model: int) -> RowMap:
        """The rows of one model."""
        own = self._own(model)
        taken = np.vstack([self._taken(model), self._nameless])  # the last line stands for the mean
        rows = np.vstack([self._default_rows, np.zeros_like(self._default_rows[:1])])
        rows[model, own] = self._rows[model, own]
        targets, parts = np.nonzero(taken.T)
        return RowMap.of(
            taken.sum(axis=0), np.where(parts == len(self._owners), MEAN, parts).astype(np.int16), rows[parts, targets]
        )

    def summary(self) -> Iterator[ModelTokens]:
        """What each model has, adds and lacks."""
        order = [i for i in range(len(self._owners)) if i != self._base]
        before = np.zeros(self._has.shape[1], bool)
        adds = {}
        for i in order if self._base is None else (self._base, *order):
            adds[i] = int((self._has[i] & ~before).sum())
            before |= self._has[i]
        for i, owner in enumerate(self._owners):
            yield ModelTokens(owner.name, int(self._has[i].sum()), adds[i], tuple(self._filled(i)))

    def _own(self, model: int) -> NDArray[np.bool_]:
        """[rows] Where the model keeps its row."""
        own: NDArray[np.bool_] = self._has[model] & ~self._forced
        return own

    def _taken(self, model: int) -> NDArray[np.bool_]:
        """Whose rows make those of one model."""
        own = self._own(model)
        taken = self.default & ~own
        taken[model] |= own
        return taken

    def _filled(self, model: int) -> Iterator[Filled]:
        taken = self._taken(model)
        lacking = ~self._own(model) & ~self._nameless
        count = taken.sum(axis=0)
        for owner, rows in zip(self._owners, taken, strict=True):
            yield from self._summed(owner.name, lacking & rows & (count == 1))
        yield from self._summed("mean of several models", lacking & (count > 1))
        yield from self._summed("zero", lacking & (count == 0))

    def _summed(self, source: str, rows: NDArray[np.bool_]) -> Iterator[Filled]:
        numbers = np.flatnonzero(rows)
        if len(numbers):
            yield Filled(source, len(numbers), tuple(self._texts[i] for i in numbers[:_SHOWN].tolist()))
