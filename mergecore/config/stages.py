"""Configs of several documents: each is a stage, whose output the others can merge by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.load import AnyConfig, Source, load_documents
from mergecore.config.origin import KeyPath
from mergecore.config.part import Part
from mergecore.config.schema import Document
from mergecore.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Stage:
    """One document, and how it depends on the others."""

    config: AnyConfig
    inputs: Mapping[str, KeyPath]
    """The names of the stages whose output it takes, each with the key in this document that first says so."""
    is_result: bool
    """Whether its output is asked for: it has no name, or no stage takes it."""


def load_stages(source: Source, *, strict: bool = False) -> tuple[Stage, ...]:
    """All documents of a config, each after those it takes the output of, otherwise in their order.

    Raises ConfigError for what is wrong in a document, for names that occur twice, and for stages that need each
    other's output.
    """
    configs = load_documents(source, strict=strict)
    ConfigError.raise_if_any(_repeated_names(configs))
    if len(configs) == 1:
        return (Stage(configs[0], {}, is_result=True),)
    names = {config.name for config in configs if config.name is not None}
    inputs = [_inputs(config, names) for config in configs]
    taken = {name for found in inputs for name in found}
    stages = [Stage(c, found, c.name not in taken) for c, found in zip(configs, inputs, strict=True)]
    return tuple(_ordered(stages))


def _repeated_names(configs: Sequence[Document]) -> Iterator[Problem]:
    first: dict[str | None, Document] = {}
    for config in configs:
        earlier = first.setdefault(config.name, config)
        if earlier is config:
            continue
        if config.name is None:
            what = f"this document has no `name`, and neither has the one at {earlier.where()}"
            yield Problem(config.where(), what, "only the last stage can do without")
        else:
            yield Problem(
                config.where("name"),
                f"the name `{config.name}` is taken: see {earlier.where('name')}",
                "choose another",
            )


def _inputs(config: Document, names: set[str]) -> dict[str, KeyPath]:
    """The stages that a document takes the output of, each with the key that first names it."""
    found: dict[str, KeyPath] = {}
    for reference, path in _references(config, ()):
        if reference.path in names:
            found.setdefault(reference.path, path)
    return found


def _references(value: Any, path: KeyPath) -> Iterator[tuple[ModelReference, KeyPath]]:
    """All model references in a config, wherever one is expected."""
    if isinstance(value, ModelReference):
        yield value, path
    elif isinstance(value, Part):
        for name in type(value).model_fields:
            yield from _references(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _references(one, (*path, key))
    elif isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from _references(one, (*path, i))


def _ordered(stages: Sequence[Stage]) -> list[Stage]:
    ordered: list[Stage] = []
    waiting = sorted(stages, key=lambda stage: stage.config.name is None)  # which no other waits for
    done: set[str | None] = set()
    while waiting:
        ready = next((stage for stage in waiting if done.issuperset(stage.inputs)), None)
        if ready is None:
            raise _cycle({stage.config.name: stage for stage in waiting}, done)
        ordered.append(ready)
        waiting.remove(ready)
        done.add(ready.config.name)
    return ordered


def _cycle(waiting: Mapping[str | None, Stage], done: set[str | None]) -> ConfigError:
    """Follow the stages that wait for each other until one comes a second time."""

    def awaited(name: str | None) -> str:
        return next(other for other in waiting[name].inputs if other not in done)

    name = next(iter(waiting))
    chain: list[str | None] = []
    while name not in chain:
        chain.append(name)
        name = awaited(name)
    stage, other = waiting[name], awaited(name)
    where = stage.config.where(*stage.inputs[other])
    if other == name:
        return ConfigError.at(
            where,
            f"the stage `{name}` takes its own output",
            "for a folder of that name write ./ before it",
        )
    arrows = " -> ".join(f"`{one}`" for one in [*chain[chain.index(name) :], name])
    return ConfigError.at(where, f"these stages need each other's output: {arrows}")
