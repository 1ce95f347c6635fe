"""Which of the settings of a config counts at one output tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pydantic import ValidationError

from mergecore.config.setting import ABSENT, Setting, SettingError, evaluate
from mergecore.errors import ConfigError, Problem
from mergecore.methods import Method, Parameter, Params, Scope

Levels = Sequence[Mapping[str, Setting]]


@dataclass(frozen=True, slots=True)
class ModelLevel:
    """One input of an output tensor, and the settings that are its own."""

    own: Mapping[str, Setting]
    """The `parameters` of its entry under `models` or `sources`."""
    tensor_name: str
    """Of the tensor in this model: what the filters of its per-model parameters see."""
    is_base: bool
    label: str
    """Names the model in messages."""


def resolve(
    method: Method,
    *,
    shared_levels: Levels,
    per_model: Sequence[ModelLevel],
    target_name: str,
    t: float,
    where: str = "",
) -> Params:
    """The parameters of `method` at the output tensor `target_name`.

    A parameter of one model is looked up in the model's own settings first, then in `shared_levels`, which go from
    the most specific (the output slice) to the least (the top of the file); then its default counts. Shared
    parameters are not looked up in the models' settings. `t` is the position in the slice, see `evaluate`.

    Raises ConfigError, at `where`, for required parameters that have no value and for values of a wrong type.
    """
    values: list[Any] = []
    problems: list[Problem] = []
    for p in _declared(method):
        try:
            values.append(_value(p, shared_levels, per_model, target_name, t))
        except SettingError as error:
            problems.append(Problem(where, error.message, error.hint))
    ConfigError.raise_if_any(problems)
    try:
        return _params(method, tuple(values))
    except ValidationError as error:
        found = (f"`{'.'.join(map(str, e['loc']))}` at {target_name}: {e['msg']}" for e in error.errors())
        raise ConfigError(*(Problem(where, what) for what in found)) from None


def _value(p: Parameter, shared_levels: Levels, per_model: Sequence[ModelLevel], target_name: str, t: float) -> Any:
    if p.scope is Scope.SHARED:
        return _look_up(p, shared_levels, target_name, t, "")
    models = (m for m in per_model if p.scope is Scope.INPUT or not m.is_base)
    return tuple(_look_up(p, (m.own, *shared_levels), m.tensor_name, t, f" of {m.label}") for m in models)


def _look_up(p: Parameter, levels: Levels, tensor_name: str, t: float, owner: str) -> Any:
    """The first value that one of `levels` has, or the default."""
    for level in levels:
        setting = level.get(p.name)
        if setting is None:
            continue
        try:
            value = evaluate(setting, p.type, tensor_name, t)
        except SettingError as error:
            raise SettingError(f"`{p.name}`{owner} at {tensor_name}: {error}") from None
        if value is not ABSENT:
            return value
    if p.required:
        what = f"`{p.name}`{owner} is missing: it has no value at {tensor_name}, and no default"
        raise SettingError(what, hint=_hint(p))
    return p.default


def _hint(p: Parameter) -> str:
    if p.scope is Scope.SHARED:
        return f"`{p.name}` is {p.scope.value}: set it under `parameters` at the top level or in a slice"
    return f"`{p.name}` is {p.scope.value}: set it under `parameters` of each, or at the top level for all"


@cache
def _declared(method: Method) -> tuple[Parameter, ...]:
    return method.parameters


@lru_cache(maxsize=4096)
def _params(method: Method, values: tuple[Any, ...]) -> Params:
    """The same object for the same values: most tensors of a merge share them."""
    return method.params.model_validate({p.name: value for p, value in zip(_declared(method), values, strict=True)})
