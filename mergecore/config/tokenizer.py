"""What a config can say about the output's tokenizer: its vocabulary, the rows of single tokens, and the template."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, PlainValidator, TypeAdapter, ValidationError

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.part import Part, Reference
from mergecore.config.setting import shown

KINDS = ("model_token", "zero")
TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
"""The names that `chat_template` knows; any other text is a Jinja template."""
SHORTEST_TEMPLATE = 20
"""Characters. Less than this is a name that was misspelt."""
WHOLE_NUMBER = TypeAdapter(int)


class ModelToken(Part):
    """The row of one token in one model. Of `token` and `token_id` exactly one is set."""

    kind: Literal["model_token"] = "model_token"
    model: Reference
    """The model that has the token."""
    token: str | None = None
    """The token's text in the vocabulary of that model."""
    token_id: int | None = None
    """The token's row in that model."""


class ZeroToken(Part):
    """A row of zeros."""

    kind: Literal["zero"] = "zero"


TokenSource: TypeAlias = ModelToken | ZeroToken | ModelReference
"""Where a token's row comes from; a model reference means that model's row of the same token."""


def _vocabulary_source(value: object) -> str | ModelReference:
    return value if value in ("union", "base") else ModelReference.parse(value)


def _token_source(value: object) -> TokenSource | None:
    """Raises ValueError(what, hint), as all validators here do."""
    if value is None or isinstance(value, ModelToken | ZeroToken):
        return value
    if not isinstance(value, Mapping):
        return ModelReference.parse(value)
    kind = value.get("kind")
    if kind == "zero":
        return ZeroToken()
    if kind == "model_token":
        return _model_token(value)
    if kind is not None:
        close = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"the kinds are: {', '.join(KINDS)}"
        raise ValueError(f"{shown(kind)} is not a kind of source", hint)
    if "token" in value or "token_id" in value:
        raise ValueError("a source that names a token needs its kind", "add `kind: model_token`")
    return ModelReference.parse(value)


def _model_token(value: Mapping[Any, Any]) -> ModelToken:
    if "model" not in value:
        raise ValueError("a `model_token` needs `model`, the model that has the token")
    token, token_id = value.get("token"), value.get("token_id")
    if (token is None) == (token_id is None):
        found = "neither" if token is None else "both"
        raise ValueError(f"a `model_token` needs exactly one of `token` and `token_id`, found {found}")
    if token is not None and not isinstance(token, str):
        raise ValueError(f"expected text as `token`, found {shown(token)}", "put it in quotes")
    return ModelToken(
        model=ModelReference.parse(value["model"]),
        token=token,
        token_id=None if token_id is None else _natural(token_id, "token_id"),
    )


def _natural(value: object, key: str) -> int:
    try:
        number = WHOLE_NUMBER.validate_python(value)
    except ValidationError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ValueError(f"expected a whole number from 0 on as `{key}`, found {shown(value)}")
    return number


def _multiple(value: object) -> int | None:
    """Zero asks for no padding."""
    return None if value is None else _natural(value, "pad_to_multiple_of") or None


def _chat_template(value: object) -> str | None:
    """Empty text asks for no template."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {shown(value)}")
    if value in TEMPLATES or (len(value) >= SHORTEST_TEMPLATE and "{" in value):
        return value
    close = difflib.get_close_matches(value.lower(), TEMPLATES, n=1)
    known = f"the names are: {', '.join(TEMPLATES)}"
    hint = f"did you mean `{close[0]}`? {known}" if close else known
    raise ValueError(f"{shown(value)} is neither the name of a template nor a Jinja template", hint)


VocabularySource: TypeAlias = Annotated[Literal["union", "base"] | ModelReference, PlainValidator(_vocabulary_source)]
ChatTemplate: TypeAlias = Annotated[str | None, PlainValidator(_chat_template)]


class Token(Part):
    """An entry of `tokens`: where the row of one token comes from."""

    source: Annotated[TokenSource | None, PlainValidator(_token_source)] = None
    """For the models that lack the token; None: what the other models have decides."""
    force: bool = False
    """Whether the models that have the token take the row too."""


class Tokenizer(Part):
    """The `tokenizer` of a config."""

    source: VocabularySource = "union"
    """Whose vocabulary the output has: that of all models together, of the base, or of one model."""
    tokens: Annotated[dict[str, Token], BeforeValidator(lambda value: {} if value is None else value)] = {}
    """By the token's text. Those that the vocabulary lacks are added."""
    pad_to_multiple_of: Annotated[int | None, PlainValidator(_multiple)] = None
    """The number of rows is rounded up to a multiple of this."""
