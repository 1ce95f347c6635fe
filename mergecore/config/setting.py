"""Settings: what a YAML can say about one parameter, and the value they have at one tensor.

A setting is a number or text, a gradient over the layers (a list of them), or conditionals: a list of mappings with
`value` and `filter`, of which the first whose filter occurs in the tensor's name counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeAlias, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

Scalar: TypeAlias = bool | int | float | str
Gradient: TypeAlias = tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Conditional:
    """A value for the tensors whose name contains `filter`; for all tensors if that is None or `*`."""

    value: Scalar | Gradient
    filter: str | None = None

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor_name


Setting: TypeAlias = Scalar | Gradient | tuple[Conditional, ...]


class Absent(Enum):
    """The type of ABSENT: a setting says nothing about a tensor, so the next level is asked."""

    ABSENT = "no value"


ABSENT: Literal[Absent.ABSENT] = Absent.ABSENT


class SettingError(ValueError):
    """What is wrong with a setting, at which key path below it, and what to do about it."""

    def __init__(self, message: str, *path: str | int, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint


def parse(value: object) -> Setting:
    """The setting that a YAML value is. Raises SettingError if it is none."""
    if isinstance(value, Mapping):
        return (_conditional(value, ()),)
    if not isinstance(value, list | tuple):
        return _scalar(value, ())
    entries = [isinstance(entry, Mapping | Conditional) for entry in value]
    if any(entries) and not all(entries):
        raise SettingError("a list holds either numbers or mappings with `value`, not both", entries.index(True))
    if any(entries):
        return tuple(e if isinstance(e, Conditional) else _conditional(e, (i,)) for i, e in enumerate(value))
    return tuple(_scalar(entry, (i,)) for i, entry in enumerate(value))


def _scalar(value: object, path: tuple[str | int, ...]) -> Scalar:
    for scalar_type in (bool, int, float, str):
        if isinstance(value, scalar_type):
            return value if type(value) is scalar_type else scalar_type(value)
    raise SettingError(f"expected a number, found {shown(value)}", *path)


def _conditional(entry: Mapping[Any, Any], path: tuple[str | int, ...]) -> Conditional:
    if "value" not in entry:
        raise SettingError("expected `value`, and perhaps `filter`, in each mapping", *path)
    name_part = entry.get("filter")
    if name_part is not None and not isinstance(name_part, str):
        raise SettingError(f"expected text as `filter`, found {shown(name_part)}", *path, "filter")
    value = entry["value"]
    if isinstance(value, list | tuple):
        return Conditional(tuple(_scalar(e, (*path, "value", i)) for i, e in enumerate(value)), name_part)
    return Conditional(_scalar(value, (*path, "value")), name_part)


def evaluate(setting: Setting, value_type: type, tensor_name: str, t: float) -> Any:
    """The value at one tensor, converted to `value_type`; ABSENT if the setting says nothing about it.

    `t` is the position in the slice: 0 in the first layer and outside the layers, 1 in the last layer. Raises
    SettingError for a value that isn't of that type.
    """
    if not isinstance(setting, tuple):
        return convert(setting, value_type)
    if setting and isinstance(setting[0], Conditional):
        chosen = next((c for c in setting if isinstance(c, Conditional) and c.matches(tensor_name)), None)
        return ABSENT if chosen is None else evaluate(chosen.value, value_type, tensor_name, t)
    return _interpolate(setting, value_type, t) if setting else ABSENT


def _interpolate(gradient: tuple[Any, ...], value_type: type, t: float) -> Any:
    """[n] values spread evenly over t from 0 to 1. Numbers are interpolated, of all else the lower neighbour counts."""
    position = t * (len(gradient) - 1)
    lower = math.trunc(position)
    if value_type not in (int, float):
        return convert(gradient[lower], value_type)
    low = convert(gradient[lower], value_type)
    high = convert(gradient[min(len(gradient) - 1, lower + 1)], value_type)
    share = position - lower
    try:
        return convert((1 - share) * low + share * high, value_type)
    except OverflowError:  # a whole number that no float can hold
        raise SettingError(f"expected a smaller number in a gradient, found {shown(max(low, high, key=abs))}") from None


def convert(value: Scalar, value_type: type) -> Any:
    """`value` as `value_type`, as pydantic's lax mode converts it. Raises SettingError, also for inf and NaN."""
    try:
        converted = _adapter(value_type).validate_python(value)
    except ValidationError:
        raise SettingError(f"expected {_kind(value_type)}, found {shown(value)}") from None
    if value_type is not float:
        return converted
    if not math.isfinite(converted):
        raise SettingError(f"expected a finite number, found {shown(value)}")
    return converted + 0.0  # -0.0 becomes 0.0: equal values are equal bits


@cache
def _adapter(value_type: type) -> TypeAdapter[Any]:
    return TypeAdapter(value_type)


def _kind(value_type: type) -> str:
    if get_origin(value_type) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(value_type))
    kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return kinds.get(value_type, f"a value of type {getattr(value_type, '__name__', value_type)}")


def shown(value: object) -> str:
    """A value as messages show it: short, in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python is willing to write
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def as_yaml(setting: Setting) -> Any:
    """The lists, mappings and scalars that `parse` turns into this setting."""
    if not isinstance(setting, tuple):
        return setting
    return [_conditional_as_yaml(e) if isinstance(e, Conditional) else e for e in setting]


def _conditional_as_yaml(conditional: Conditional) -> dict[str, Any]:
    value = list(conditional.value) if isinstance(conditional.value, tuple) else conditional.value
    return {"value": value} if conditional.filter is None else {"filter": conditional.filter, "value": value}
