"""The known architectures. Each is a JSON file in `architectures/`; that folder's README.md says how one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import count
from typing import Any, TypeAlias

from mergecore.checkpoint.architecture import (
    DEFAULT_MODULE,
    USUAL_STACKINGS,
    Architecture,
    Module,
    Stacking,
    Weight,
)

Entry: TypeAlias = str | list[str]
"""A template of names, or several whose tensors occur together or not at all."""
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_OPTIONAL = "?"


@dataclass(frozen=True, slots=True)
class _Names:
    """What a file says of names in all its modules."""

    vocabulary: frozenset[str]
    tied: Mapping[str, list[str]]
    aliases: Mapping[str, list[str]]
    layouts: tuple[Mapping[str, str], ...]
    """How names begin in each layout, by how they begin in the file."""
    layout: int
    """The one that names are written in."""

    def weight(self, name: str, optional: bool, group: int | None) -> Weight:
        own, *aliases = self._all_names(name)
        return Weight(
            name=own,
            optional=optional,
            group=group,
            aliases=tuple(aliases),
            tied_to=tuple(other for tied in self.tied.get(name, ()) for other in self._all_names(tied)),
            vocabulary_axis=0 if name in self.vocabulary else None,
        )

    def in_layouts(self, name: str) -> Iterator[str]:
        """The name in this layout, then in the others."""
        for rules in (self.layouts[self.layout], *self.layouts[: self.layout], *self.layouts[self.layout + 1 :]):
            start = next((start for start in rules if name.startswith(start)), "")
            yield rules.get(start, "") + name.removeprefix(start)

    def _all_names(self, name: str) -> Iterable[str]:
        names = list(self.in_layouts(name))
        for part, others in self.aliases.items():
            names += [n.replace(part, other, 1) for n in names if part in n for other in others]
        return dict.fromkeys(names)


@cache
def definitions() -> dict[str, tuple[Architecture, ...]]:
    """All that is known, by the name in config.json's `architectures`; some names have several meanings."""
    folder = resources.files("mergecore.checkpoint") / "architectures"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    found: dict[str, tuple[Architecture, ...]] = {}
    for file in files:
        for architecture in _read(file.name.removesuffix(".json"), json.loads(file.read_text(encoding="utf-8"))):
            found[architecture.name] = (*found.get(architecture.name, ()), architecture)
    return found


def _read(file: str, data: Mapping[str, Any]) -> Iterator[Architecture]:
    """The architectures of one file: every class of models in every layout."""
    layouts = ({}, *data.get("layouts", ()))
    heads = data["architectures"] if isinstance(data["architectures"], dict) else dict.fromkeys(data["architectures"])
    for layout in range(len(layouts)):
        names = _Names(
            vocabulary=frozenset(data["vocabulary"]),
            tied=data.get("tied", {}),
            aliases=data.get("aliases", {}),
            layouts=layouts,
            layout=layout,
        )
        groups = count()
        first, *others = (
            _module(name, module, names, groups) for name, module in data.get("modules", {DEFAULT_MODULE: data}).items()
        )
        for name, head in heads.items():
            after = first.after + tuple(_weights(head or (), names, groups))
            yield Architecture(
                name=name,
                definition=(file, *(head or ())),
                modules=(replace(first, after=after), *others),
                files=tuple(data.get("files", ())),
                vocabulary_size=_keys(data.get("vocabulary_size", "vocab_size")),
                stackings=_stackings(data.get("stacked")),
                model_type=data["model_type"],
            )


def _module(name: str, data: Mapping[str, Any], names: _Names, groups: Iterator[int]) -> Module:
    prefix = data.get("layers", "")
    entries = [
        prefix + entry if isinstance(entry, str) else [prefix + one for one in entry] for entry in data.get("layer", ())
    ]
    return Module(
        name=name,
        before=tuple(_weights(data.get("before", ()), names, groups)),
        layer=tuple(_weights(entries, names, groups)),
        after=tuple(_weights(data.get("after", ()), names, groups)),
        prefixes=tuple(dict.fromkeys(names.in_layouts(prefix))) if prefix else (),
        first_layer=data.get("first_layer", 0),
        layer_count=_keys(data.get("layer_count", ())),
        expert_count=_keys(data.get("expert_count", ())),
    )


def _stackings(stacked: Mapping[str, list[str]] | None) -> tuple[Stacking, ...]:
    if stacked is None:
        return USUAL_STACKINGS
    return tuple(Stacking(name, tuple(parts)) for name, parts in stacked.items())


def _keys(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _weights(entries: Iterable[Entry], names: _Names, groups: Iterator[int]) -> Iterator[Weight]:
    for entry in entries:
        together = not isinstance(entry, str)
        group = next(groups) if together else None
        for template in [entry] if isinstance(entry, str) else entry:
            for name in _expanded(template):
                optional = name.endswith(_OPTIONAL)
                yield names.weight(name.removesuffix(_OPTIONAL), optional or together, None if optional else group)


def _expanded(template: str) -> Iterator[str]:
    """`a.{b,c?}` -> `a.b`, `a.c?`. A question mark goes to the end."""
    choice = _CHOICE.search(template)
    if choice is None:
        yield template.replace(_OPTIONAL, "") + _OPTIONAL if _OPTIONAL in template else template
        return
    for one in choice[1].split(","):
        yield from _expanded(template[: choice.start()] + one + template[choice.end() :])
