"""The mappings of a config that isn't checked yet, each with its key path and what it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.origin import KeyPath

RawMapping = Mapping[Any, Any]


class Kind(Enum):
    """What a mapping describes, in the words of messages."""

    CONFIG = "a merge config"
    MODEL = "an entry of `models`"
    MODULE = "an entry of `modules`"
    SLICE = "an entry of `slices`"
    SOURCE = "an entry of `sources`"
    REFERENCE = "a model"
    REFERENCE_PART = "a path with revision"
    PARAMETERS = "the parameters of all models"
    OWN_PARAMETERS = "the parameters of one model"
    BASE_PARAMETERS = "the parameters of the base model"
    CONDITIONAL = "a conditional value"
    TOKENIZER = "the tokenizer"
    TOKEN = "an entry of `tokens`"
    MODEL_TOKEN = "a token of a model"
    ZERO_TOKEN = "a row of zeros"
    MIXTURE = "a config for a mixture of experts"
    EXPERT = "an expert"


@dataclass(frozen=True, slots=True)
class Level:
    kind: Kind
    path: KeyPath
    mapping: RawMapping


def walk(raw: RawMapping) -> Iterator[Level]:
    """All mappings whose keys mean something. What has the wrong form is passed over: the schema complains of it."""
    base = raw.get("base_model")
    yield Level(Kind.CONFIG, (), raw)
    yield from _reference(raw, "base_model", ())
    yield from _parameters(raw, (), Kind.PARAMETERS)
    yield from _models_and_slices(raw, (), base)
    modules = raw.get("modules")
    for name, module in modules.items() if isinstance(modules, Mapping) else ():
        if isinstance(module, Mapping):
            yield Level(Kind.MODULE, ("modules", name), module)
            yield from _parameters(module, ("modules", name), Kind.PARAMETERS)
            yield from _models_and_slices(module, ("modules", name), base)
    yield from _reference(raw, "tokenizer_source", ())
    if isinstance(raw.get("tokenizer"), Mapping):
        yield from _tokenizer(raw["tokenizer"], ("tokenizer",))


def walk_mixture(raw: RawMapping) -> Iterator[Level]:
    """The same of a config for a mixture of experts."""
    yield Level(Kind.MIXTURE, (), raw)
    yield from _reference(raw, "base_model", ())
    for key in ("experts", "shared_experts"):
        for path, expert in _entries(raw, key, ()):
            yield Level(Kind.EXPERT, path, expert)
            yield from _reference(expert, "source_model", path)


def _models_and_slices(around: RawMapping, path: KeyPath, base: object) -> Iterator[Level]:
    for at, entry in _entries(around, "models", path):
        yield from _model(Level(Kind.MODEL, at, entry), base)
    for at, entry in _entries(around, "slices", path):
        yield Level(Kind.SLICE, at, entry)
        yield from _reference(entry, "base_model", at)
        yield from _parameters(entry, at, Kind.PARAMETERS)
        own_base = entry.get("base_model") or base
        for source_path, source in _entries(entry, "sources", at):
            yield from _model(Level(Kind.SOURCE, source_path, source), own_base)


def _tokenizer(tokenizer: RawMapping, path: KeyPath) -> Iterator[Level]:
    yield Level(Kind.TOKENIZER, path, tokenizer)
    yield from _reference(tokenizer, "source", path)
    tokens = tokenizer.get("tokens")
    for text, token in tokens.items() if isinstance(tokens, Mapping) else ():
        if isinstance(token, Mapping):
            yield Level(Kind.TOKEN, (*path, "tokens", text), token)
            yield from _token_source(token, (*path, "tokens", text))


def _token_source(token: RawMapping, path: KeyPath) -> Iterator[Level]:
    source: Any = token.get("source")
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if kind == "zero":
        yield Level(Kind.ZERO_TOKEN, (*path, "source"), source)
    elif kind == "model_token":
        yield Level(Kind.MODEL_TOKEN, (*path, "source"), source)
        yield from _reference(source, "model", (*path, "source"))
    else:
        yield from _reference(token, "source", path)


def _model(level: Level, base: object) -> Iterator[Level]:
    yield level
    yield from _reference(level.mapping, "model", level.path)
    is_base = _same_model(level.mapping.get("model"), base)
    yield from _parameters(level.mapping, level.path, Kind.BASE_PARAMETERS if is_base else Kind.OWN_PARAMETERS)


def _same_model(one: object, other: object) -> bool:
    try:
        return ModelReference.parse(one) == ModelReference.parse(other)
    except ValueError:
        return False


def _reference(around: RawMapping, key: str, path: KeyPath) -> Iterator[Level]:
    reference = around.get(key)
    if not isinstance(reference, Mapping):
        return
    yield Level(Kind.REFERENCE, (*path, key), reference)
    for part in ("model", "lora"):
        if isinstance(reference.get(part), Mapping):
            yield Level(Kind.REFERENCE_PART, (*path, key, part), reference[part])


def _parameters(around: RawMapping, path: KeyPath, kind: Kind) -> Iterator[Level]:
    settings = around.get("parameters")
    if not isinstance(settings, Mapping):
        return
    path = (*path, "parameters")
    yield Level(kind, path, settings)
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield Level(Kind.CONDITIONAL, (*path, name), value)
        yield from (Level(Kind.CONDITIONAL, at, entry) for at, entry in _entries(settings, name, path))


def _entries(around: RawMapping, key: Any, path: KeyPath) -> Iterator[tuple[KeyPath, RawMapping]]:
    """The mappings in the list at `key`."""
    entries = around.get(key)
    if isinstance(entries, list):
        yield from (((*path, key, i), entry) for i, entry in enumerate(entries) if isinstance(entry, Mapping))
