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
    SLICE = "an entry of `slices`"
    SOURCE = "an entry of `sources`"
    REFERENCE = "a model"
    REFERENCE_PART = "a path with revision"
    PARAMETERS = "the parameters of all models"
    OWN_PARAMETERS = "the parameters of one model"
    BASE_PARAMETERS = "the parameters of the base model"
    CONDITIONAL = "a conditional value"


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
    for path, entry in _entries(raw, "models", ()):
        yield from _model(Level(Kind.MODEL, path, entry), base)
    for path, entry in _entries(raw, "slices", ()):
        yield Level(Kind.SLICE, path, entry)
        yield from _reference(entry, "base_model", path)
        yield from _parameters(entry, path, Kind.PARAMETERS)
        own_base = entry.get("base_model") or base
        for source_path, source in _entries(entry, "sources", path):
            yield from _model(Level(Kind.SOURCE, source_path, source), own_base)


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
