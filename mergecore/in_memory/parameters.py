"""A method's parameters from the arguments of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mergecore.config.setting import SettingError, convert, shown
from mergecore.config.unknown_keys import closest
from mergecore.errors import ConfigError, Problem
from mergecore.methods import Method, Parameter, Params, Scope


def parameters(method: Method, values: Mapping[str, Any], base_index: int | None, labels: Sequence[str]) -> Params:
    """The parameters, converted as those of a config are. Raises ConfigError."""
    given = {key.removesuffix("_"): value for key, value in values.items()}
    problems = list(_unknown(method, given))
    found: dict[str, Any] = {}
    for p in method.parameters:
        try:
            found[p.name] = _values(p, given, base_index, labels)
        except SettingError as error:
            problems.append(Problem(p.name, str(error)))
    ConfigError.raise_if_any(problems)
    try:
        return method.params.model_validate(found)
    except ValidationError as error:
        raise ConfigError(*(Problem(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())) from None


def _unknown(method: Method, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = [p.name for p in method.parameters]
    for key in given:
        if key not in known:
            meant = closest(key, known, given)
            hint = f"did you mean `{meant}`?" if meant else f"its parameters are: {', '.join(known) or 'none'}"
            yield Problem(key, f"`{key}` is not a parameter of `{method.name}`", hint)


def _values(p: Parameter, given: Mapping[str, Any], base_index: int | None, labels: Sequence[str]) -> Any:
    """One value, or one of each model. Raises SettingError."""
    value: Any = given.get(p.name)
    plain = value.tolist() if hasattr(value, "tolist") else value  # of arrays and tensors
    if p.scope is Scope.SHARED:
        return _one(p, plain)
    owners = [label for i, label in enumerate(labels) if p.scope is Scope.INPUT or i != base_index]
    if not isinstance(plain, list | tuple):
        return (_one(p, plain),) * len(owners)
    if len(plain) != len(owners):
        raise SettingError(f"expected {len(owners)} values, one for each of {', '.join(owners)}, found {len(plain)}")
    return tuple(_one(p, one) for one in plain)


def _one(p: Parameter, value: object) -> Any:
    if value is None:
        if p.required:
            raise SettingError(f"`{p.name}` is missing, and has no default")
        return p.default
    if not isinstance(value, bool | int | float | str):
        raise SettingError(f"expected a single value, found {shown(value)}")
    return convert(value, p.type)
