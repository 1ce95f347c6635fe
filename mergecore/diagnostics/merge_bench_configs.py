"""A usual config of each method, for the generated models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergecore.checkpoint.dtypes import Dtype
from mergecore.errors import ConfigError
from mergecore.methods.method import Method, Scope


def config_for(method: Method, models: Sequence[Path], dtype: Dtype) -> dict[str, Any]:
    """The config that merges as many of `models`, the base first, as the method takes, with its example's parameters.

    A base that the method ignores is left out. Raises ConfigError if there are too few fine-tunes for it.
    """
    base, *tunes = map(str, models)
    tunes = tunes[: _most_tunes(method)]
    if len(tunes) < fewest_tunes(method):
        raise ConfigError.at("--models", f"`{method.name}` needs {fewest_tunes(method)} fine-tunes, not {len(tunes)}")
    shared, own = _parameters(method)
    entries: list[dict[str, Any]] = [{"model": base}] if _names_base_as_model(method) else []
    for i, tune in enumerate(tunes):
        values = {name: of_models[i % len(of_models)] for name, of_models in own.items()}
        entries.append({"model": tune, "parameters": values} if values else {"model": tune})
    config: dict[str, Any] = {"merge_method": method.name, "models": entries, "dtype": dtype.torch_name}
    if _takes_base(method):
        config["base_model"] = base
    return config | ({"parameters": shared} if shared else {})


def fewest_tunes(method: Method) -> int:
    """Fine-tunes that the method needs beside the base."""
    return max(1, method.models[0] - _counted_bases(method))


def _most_tunes(method: Method) -> int | None:
    most = method.models[1]
    return None if most is None else most - _counted_bases(method)


def _takes_base(method: Method) -> bool:
    return method.base != "ignored"


def _counted_bases(method: Method) -> int:
    return int(_takes_base(method) and method.base_counts)


def _names_base_as_model(method: Method) -> bool:
    """Methods for a base and one other list both, as they are symmetric or nearly so."""
    return bool(_counted_bases(method)) and method.models[1] is not None


def _parameters(method: Method) -> tuple[dict[str, Any], dict[str, Sequence[Any]]]:
    """The values that the example sets: one for all models, and those with a value per model."""
    shared: dict[str, Any] = {}
    own: dict[str, Sequence[Any]] = {}
    for parameter, field in zip(method.parameters, method.params.model_fields, strict=True):
        value = getattr(method.example, field)
        if field not in method.example.model_fields_set or value in (None, (None,)):
            continue
        if parameter.scope is Scope.SHARED:
            shared[parameter.name] = value
        else:
            own[parameter.name] = value
    return shared, own
