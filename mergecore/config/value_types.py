"""Whether the settings of a config can be values of the method's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mergecore.config import setting
from mergecore.config.levels import Kind, Level
from mergecore.config.origin import Finding, KeyPath
from mergecore.config.setting import SettingError
from mergecore.methods import Method, Parameter, Scope

NEVER_USED = {
    Kind.OWN_PARAMETERS: (Scope.SHARED,),
    Kind.BASE_PARAMETERS: (Scope.SHARED, Scope.TASK),
}
"""Which parameters are not looked up there, so may hold anything."""


def find(levels: Iterable[Level], method: Method) -> Iterator[Finding]:
    """All values of a wrong type. What is no setting at all is left to the schema."""
    parameters = {p.name: p for p in method.parameters}
    for level in levels:
        if level.kind not in (Kind.PARAMETERS, *NEVER_USED):
            continue
        for name, value in level.mapping.items():
            p = parameters.get(name)
            if p is not None and p.scope not in NEVER_USED.get(level.kind, ()):
                yield from _wrong(p, value, (*level.path, name))


def _wrong(p: Parameter, value: Any, path: KeyPath) -> Iterator[Finding]:
    try:
        setting.parse(value)
    except SettingError:
        return
    for below, scalar in _scalars(value, ()):
        try:
            setting.convert(scalar, p.type)
        except SettingError as error:
            yield Finding((*path, *below), f"{p.name}: {error}")


def _scalars(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _scalars(entry, (*path, i))
    elif isinstance(value, dict):
        yield from _scalars(value["value"], (*path, "value"))
    else:
        yield path, value
