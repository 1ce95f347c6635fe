"""Which rows go into each model's embedding: the rules, token by token, and what is said of them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore import PlanError
from mergecore.checkpoint.gathered_rows import MEAN, RowMap
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.tokenizer import ModelToken, Token, ZeroToken
from mergecore.tokenizer.embedding_rows import Owner, Rows, rows_of

Row = list[tuple[int, int]]
MODELS = [ModelReference(name) for name in "abc"]


def rows(
    ids: dict[str, int], owners: list[dict[str, int]], base: int | None = None, multiple: int = 1, **tokens: Token
) -> Rows:
    """Each model has as many rows as tokens, or those up to its largest number."""
    models = [Owner(name, has, max(has.values(), default=-1) + 1) for name, has in zip("abc", owners, strict=False)]
    return rows_of(
        ids, models, MODELS[: len(models)], base, tokens, multiple, {text: f"merge.yml:{text}" for text in tokens}
    )


def entries(found: RowMap) -> list[Row]:
    """(model, row) of all that each row is the mean of."""
    of_all = found.entries(0, found.n)
    return [
        [(int(p), int(r)) for t, p, r in zip(of_all.targets, of_all.parts, of_all.rows, strict=True) if t == i]
        for i in range(found.n)
    ]


def test_missing_rows_without_a_base() -> None:
    found = rows({"x": 0, "y": 1, "z": 2, "q": 3}, [{"x": 0}, {"x": 1, "y": 0}, {"y": 5, "z": 2}])
    a, b, c = map(entries, found.maps)
    assert a == [[(0, 0)], [(1, 0), (2, 5)], [(2, 2)], []]
    assert b == [[(1, 1)], [(1, 0)], [(2, 2)], []]
    assert c == [[(0, 0), (1, 1)], [(2, 5)], [(2, 2)], []]
    assert found.notes == ("tokens that no model has a row for get zeros (1): 'q'",)
    assert [str(model) for model in found.models] == [
        "a: has 1, adds 1; other rows: 1 from c ('z'), 1 from mean of several models ('y'), 1 from zero ('q')",
        "b: has 2, adds 1; other rows: 1 from c ('z'), 1 from zero ('q')",
        "c: has 2, adds 1; other rows: 1 from mean of several models ('x'), 1 from zero ('q')",
    ]


def test_missing_rows_are_those_of_the_base_if_it_has_them() -> None:
    found = rows({"x": 0, "y": 1}, [{"y": 0}, {"x": 0, "y": 1}, {"x": 1}], base=1)
    assert [entries(one) for one in found.maps] == [[[(1, 0)], [(0, 0)]], [[(1, 0)], [(1, 1)]], [[(2, 1)], [(1, 1)]]]
    assert [model.adds for model in found.models] == [0, 2, 0]


def test_rows_that_belong_to_no_token_are_the_mean_of_the_others() -> None:
    found = rows({"x": 0, "y": 3}, [{"x": 1, "y": 0}], multiple=4)
    assert entries(found.maps[0]) == [[(0, 1)], [(MEAN, 0)], [(MEAN, 0)], [(0, 0)]]
    assert rows({"x": 0}, [{"x": 0}], multiple=3).maps[0].n == 3
    assert rows({"x": 0}, [{"x": 0}]).maps[0].is_start_of(0)


def test_tokens_with_a_source() -> None:
    ids = {text: i for i, text in enumerate("uvwxyz")}
    a, b = {"u": 0, "v": 1, "w": 2, "x": 3}, {"u": 5, "v": 4, "y": 2}
    found = rows(
        ids, [a, b],
        u=Token(source=ModelReference("b"), force=True),
        v=Token(source=ZeroToken(), force=True),
        w=Token(source=ZeroToken()),
        x=Token(source=ModelToken(model=ModelReference("b"), token="y")),
        y=Token(source=ModelToken(model=ModelReference("b"), token_id=3), force=True),
        z=Token(source=ModelToken(model=ModelReference("a"), token_id=0)),
    )  # fmt: skip
    assert entries(found.maps[0]) == [[(1, 5)], [], [(0, 2)], [(0, 3)], [(1, 3)], [(0, 0)]]
    assert entries(found.maps[1]) == [[(1, 5)], [], [], [(1, 2)], [(1, 3)], [(0, 0)]]
    assert found.problems == found.notes == ()


def test_a_forced_token_without_a_source_is_the_same_in_all_models() -> None:
    found = rows({"x": 0}, [{"x": 0}, {"x": 1}], x=Token(force=True))
    assert [entries(one) for one in found.maps] == [[[(0, 0), (1, 1)]]] * 2


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            Token(source=ModelReference("d")),
            "merge.yml:x: the row of 'x' should come from d, which is not merged (hint: the models are: a, b)",
        ),
        (
            Token(source=ModelReference("b")),
            "merge.yml:x: the row of 'x' should be that of token 'x' of b, which has no such token",
        ),
        (
            Token(source=ModelToken(model=ModelReference("b"), token="z")),
            "merge.yml:x: the row of 'x' should be that of token 'z' of b, which has no such token",
        ),
        (
            Token(source=ModelToken(model=ModelReference("b"), token_id=9)),
            "merge.yml:x: the row of 'x' should be that of token 9 of b, which has no such token (hint: it has 2 rows)",
        ),
    ],
)
def test_a_source_that_can_not_be(token: Token, message: str) -> None:
    (problem,) = rows({"x": 0, "y": 1}, [{"x": 0, "y": 1}, {"y": 1}], x=token).problems
    assert f"{problem} (hint: {problem.hint})" == message or str(problem) == message
    everywhere = rows({"x": 0}, [{"x": 0}, {"x": 1}], x=Token(source=ModelReference("d")))
    assert everywhere.problems == ()
    assert everywhere.notes == ("all models have the token 'x', so its source has no effect without `force: true`",)


def test_more_rows_than_memory_could_be_taken_for() -> None:
    with pytest.raises(PlanError) as caught:
        rows({"x": 0}, [{"x": 0}], multiple=10**15)
    assert str(caught.value) == (
        "tokenizer: the embeddings would have 1000000000000000 rows, and 4194304 are the most "
        "(hint: is `pad_to_multiple_of` what you mean?)"
    )


def naive(
    text: str, model: int, owners: list[dict[str, int]], base: int | None, token: Token | None
) -> dict[tuple[int, int], Fraction]:
    """Weight of each row in a token's row of one model, by the rules as they are written."""
    if text in owners[model] and not (token and token.force):
        return {(model, owners[model][text]): Fraction(1)}
    if token and isinstance(token.source, ZeroToken):
        return {}
    if token and isinstance(token.source, ModelToken):
        source = MODELS.index(token.source.model)
        return {(source, token.source.token_id or 0): Fraction(1)}
    having = [i for i, has in enumerate(owners) if text in has]
    chosen = [base] if base in having else having
    return {(i, owners[i][text]): Fraction(1, len(chosen)) for i in chosen if i is not None}


@st.composite
def worlds(draw):
    texts = draw(st.lists(st.sampled_from("pqrstuvwxyz"), min_size=1, unique=True))
    ids = dict(
        zip(
            texts,
            draw(st.lists(st.integers(0, 20), min_size=len(texts), max_size=len(texts), unique=True)),
            strict=True,
        )
    )
    some = st.lists(st.sampled_from([*texts, "!", "?"]), min_size=1, unique=True)
    owners = [{text: i for i, text in enumerate(draw(some))} for _ in range(draw(st.integers(1, 3)))]
    row = st.builds(lambda i: ModelToken(model=MODELS[i], token_id=0), st.integers(0, len(owners) - 1))
    token = st.builds(Token, source=st.one_of(st.none(), st.just(ZeroToken()), row), force=st.booleans())
    tokens = draw(st.dictionaries(st.sampled_from(texts), token))
    return ids, owners, draw(st.sampled_from([None, *range(len(owners))])), tokens, draw(st.integers(1, 8))


@settings(max_examples=150)
@given(world=worlds())
def test_any_vocabularies(world) -> None:
    ids, owners, base, tokens, multiple = world
    found = rows(ids, owners, base, multiple, **tokens)
    assert not found.problems
    n = max(ids.values()) + 1
    texts = {i: text for text, i in ids.items()}
    for model, one in enumerate(found.maps):
        assert one.n % multiple == 0
        assert n <= one.n < n + multiple
        for i, row in enumerate(entries(one)):
            if i in texts:
                expected = naive(texts[i], model, owners, base, tokens.get(texts[i]))
                assert dict.fromkeys(row, Fraction(1, max(len(row), 1))) == expected
                assert row == sorted(row)
            else:
                assert row == [(MEAN, 0)]
