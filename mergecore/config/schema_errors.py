"""pydantic's errors in the words of a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mergecore.config.origin import Finding, dotted
from mergecore.config.setting import SettingError, shown

EXPECTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def find(error: ValidationError) -> Iterator[Finding]:
    """One finding per error. That of a missing key has the path that the key would have."""
    for details in error.errors():
        yield _finding(details)


def _finding(details: ErrorDetails) -> Finding:
    path = tuple(key for key in details["loc"] if key != "[key]")
    if details["type"] == "missing":
        return Finding(path, f"`{path[-1]}` is missing{_inside(path[:-1])}")
    name = str(path[-1]) if isinstance(path[-1], str) else dotted(path[-2:])
    raised = details.get("ctx", {}).get("error")
    if isinstance(raised, SettingError):
        return Finding((*path, *raised.path), f"{name}: {raised}")
    if isinstance(raised, ValueError):
        what, *hint = raised.args
        return Finding(path, f"{name}: {what}", *hint)
    found = details["input"]
    expected = EXPECTED.get(details["type"])
    if "[key]" in details["loc"]:
        thing = "a token" if path[-2:-1] == ("tokens",) else "the name of a parameter"
        return Finding(path, f"{shown(found)} can't be {thing}, which is text", "put it in quotes")
    if expected is None:
        return Finding(path, f"{name}: {details['msg']}, found {shown(found)}")
    return Finding(path, f"{name}: expected {expected}, found {shown(found)}", _hint(path, found))


def _inside(path: tuple[Any, ...]) -> str:
    return f" in {dotted(path)}" if path else ""


def _hint(path: tuple[Any, ...], found: object) -> str:
    if isinstance(found, str) and path[-2:-1] == ("models",):
        return f"write `- model: {found}`"
    return ""
