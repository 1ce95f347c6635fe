"""The config of a merge of adapters: YAML in the style of a merge of models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator, ValidationError

from mergecore.adapters.combine import METHODS, SCHEMES
from mergecore.config import schema_errors
from mergecore.config.load import Source, origins
from mergecore.config.origin import Finding, KeyPath
from mergecore.config.part import Part, Reference
from mergecore.config.schema import Document, Dtype, Settings
from mergecore.config.setting import ABSENT, SettingError, evaluate
from mergecore.config.unknown_keys import closest
from mergecore.errors import ConfigError

_KEYS = ("merge_method", "models", "parameters", "dtype")
_ENTRY_KEYS = ("model", "parameters")
_LAYER = re.compile(r"\.(\d+)\.")


def _method(value: object) -> str:
    """Raises ValueError(what, hint), as all validators of configs do."""
    if value in METHODS:
        return str(value)
    meant = closest(str(value), METHODS)
    hint = f"did you mean `{meant}`?" if meant else f"the methods are: {', '.join(METHODS)}"
    raise ValueError(f"`{value!s:.60}` is not a method for adapters", hint)


Method: TypeAlias = Annotated[str, PlainValidator(_method)]


class AdapterEntry(Part):
    """An entry of `models`."""

    model: Reference
    """The adapter: a folder, or a repository on the Hub."""
    parameters: Settings = {}
    """Settings for this adapter alone."""


class AdapterConfig(Document):
    """A merge of adapters as it was asked for."""

    merge_method: Method
    models: tuple[AdapterEntry, ...]
    parameters: Settings = {}
    """Settings for all adapters and modules, where the entry of an adapter has no say."""
    dtype: Dtype | None = None
    """Of the result; None: the one that the adapters have in common."""

    def weight(self, model: int, module: str, n_layers: int) -> float:
        """What an adapter's update of a module is multiplied by. Raises ConfigError."""
        found = self._value("weight", float, model, module, n_layers)
        if found is ABSENT:
            where = self.where("models", model)
            raise ConfigError.at(where, f"`weight` is missing, at `{module}`", "it has no default")
        return float(found)

    def density(self, model: int, module: str, n_layers: int) -> float:
        """The share of an adapter's factors that is kept. Raises ConfigError."""
        found = self._value("density", float, model, module, n_layers)
        density = 1.0 if found is ABSENT else float(found)
        if not 0 < density <= 1:
            where = self.where("models", model, "parameters", "density")
            raise ConfigError.at(where, f"density: expected a share above 0 and up to 1, found {density:g}")
        return density

    def rank(self, module: str, n_layers: int) -> int | None:
        """The rank of a module, where the method has one to choose; None: not said. Raises ConfigError."""
        found = self._value("rank", int, None, module, n_layers)
        if found is ABSENT:
            return None
        if found < 1:
            raise ConfigError.at(self.where("parameters", "rank"), f"rank: expected 1 or more, found {found}")
        return int(found)

    def _value(self, name: str, kind: type, model: int | None, module: str, n_layers: int) -> Any:
        """What the entry of an adapter says of a parameter, or else the whole config; ABSENT if neither does."""
        t = (layer_of(module) or 0) / max(n_layers - 1, 1)
        levels: list[tuple[KeyPath, Settings]] = [(("parameters",), self.parameters)]
        if model is not None:
            levels.insert(0, (("models", model, "parameters"), self.models[model].parameters))
        for path, settings in levels:
            if name in settings:
                try:
                    found = evaluate(settings[name], kind, module, t)
                except SettingError as error:
                    where = self.where(*path, name, *error.path)
                    raise ConfigError.at(where, f"{name}: {error}", error.hint) from None
                if found is not ABSENT:
                    return found
        return ABSENT


def layer_of(module: str) -> int | None:
    """The number in a module's name; None if it is in no layer."""
    match = _LAYER.search(module)
    return int(match[1]) if match else None


def load(source: Source) -> AdapterConfig:
    """The config in `source`: a YAML file, or its content. Raises ConfigError with all problems and their lines."""
    origin, *others = origins(source)
    if others:
        raise ConfigError.at(others[0].where(), "a second document begins here: expected a single merge of adapters")
    findings = list(_unknown_keys(origin.raw))
    try:
        config = AdapterConfig.model_validate(origin.raw)
    except ValidationError as error:
        findings += schema_errors.find(error)
    else:
        findings += _unknown_parameters(config)
        if not config.models:
            findings.append(Finding(("models",), "there is no adapter to merge"))
        for i, entry in enumerate(config.models):
            if entry.model.lora is not None:
                what = f"`{entry.model}` is a model with an adapter, and adapters are merged here without their model"
                findings.append(Finding(("models", i, "model"), what, f"write `{entry.model.lora}`"))
    ConfigError.raise_if_any(origin.problems(findings))
    return config.with_origin(origin)


def _unknown_keys(raw: Mapping[Any, Any]) -> Iterator[Finding]:
    yield from _unknown(raw, _KEYS, (), "a merge of adapters")
    entries = raw.get("models")
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, Mapping):
            yield from _unknown(entry, _ENTRY_KEYS, ("models", i), "an entry of `models`")


def _unknown_parameters(config: AdapterConfig) -> Iterator[Finding]:
    """Parameters that the method doesn't have, or doesn't look for where they are."""
    method = config.merge_method
    scheme = SCHEMES.get(method)
    own = ("weight", "density") if scheme and scheme.sparsify else ("weight",)
    shared = (*own, "rank") if method == "svd" else own
    what = f"`{method}`"
    yield from _unknown(config.parameters, shared, ("parameters",), what)
    for i, entry in enumerate(config.models):
        yield from _unknown(entry.parameters, own, ("models", i, "parameters"), what)


def _unknown(mapping: Mapping[Any, Any], known: tuple[str, ...], path: KeyPath, owner: str) -> Iterator[Finding]:
    for key in mapping:
        if key not in known:
            meant = closest(key, known, mapping)
            hint = f"did you mean `{meant}`?" if meant else f"it has {', '.join(f'`{one}`' for one in known)}"
            kind = "parameter" if path[-1:] == ("parameters",) else "key"
            yield Finding((*path, key), f"`{key!s:.60}` is not a {kind} of {owner}", hint)
