"""Load a config: read it, check it, and tell all that is wrong at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from mergecore import methods
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config import mixture, positions, schema_errors, unknown_keys, value_types
from mergecore.config.levels import RawMapping, walk, walk_mixture
from mergecore.config.mixture import MixtureConfig
from mergecore.config.origin import Finding, KeyPath, Origin, dotted
from mergecore.config.schema import Config, Document
from mergecore.config.setting import shown
from mergecore.config.unknown_keys import Unknown
from mergecore.errors import ConfigError, Problem
from mergecore.methods import Method

D = TypeVar("D", bound=Document)
AnyConfig: TypeAlias = Config | MixtureConfig
MOST_BYTES = 16_000_000
"""No config is larger; a model that is named in its place is."""


Source: TypeAlias = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A YAML file, of which text is always the path; or what it would say, as a mapping, or as one per document."""


def load(source: Source, *, strict: bool = False) -> AnyConfig:
    """The one config in `source`.

    What has no effect, such as a key that mergekit ignores, is listed in `warnings` of the config; if `strict`, it is
    an error. Raises ConfigError with all problems and their lines.
    """
    config, *others = load_documents(source, strict=strict)
    if others:
        what = "a second document begins here: this is a config of several stages, expected a single merge"
        raise ConfigError.at(others[0].where(), what)
    return config


def load_documents(source: Source, *, strict: bool = False) -> tuple[AnyConfig, ...]:
    """The configs in `source`, one per document and at least one, in their order. Otherwise like `load`."""
    found = origins(source)
    configs: list[AnyConfig] = []
    problems: list[Problem] = []
    for origin in found:
        try:
            configs.append(_load(origin, strict=strict, alone=len(found) == 1))
        except ConfigError as error:
            problems += error.problems
    ConfigError.raise_if_any(problems)
    return tuple(configs)


def origins(source: Source) -> tuple[Origin, ...]:
    """What the documents in `source` say, one at least, with the lines of their keys. Raises ConfigError."""
    if isinstance(source, str | Path):
        return positions.read(*_read(Path(source)))
    if isinstance(source, Mapping):
        return (_in_memory(source, "config"),)
    if not source:
        raise ConfigError.at("config", "there is no config in an empty list")
    return tuple(_in_memory(mapping, f"config[{i}]") for i, mapping in enumerate(source))


def _load(origin: Origin, *, strict: bool, alone: bool) -> AnyConfig:
    """The config of one document; `alone` says that there is no other."""
    if mixture.is_mixture(origin.raw):
        return _load_mixture(origin, strict=strict, alone=alone)
    method = _method(origin.raw)
    levels = list(walk(origin.raw))
    unknown = list(unknown_keys.find(levels, method))
    config, errors = _validate(Config, origin.raw, unknown)
    errors += _unknown_method(origin.raw)
    errors += [*_parts(origin.raw, _meant(unknown)), *_tokenizers(origin.raw)]
    errors += value_types.find(levels, method) if method else ()
    return _checked(config, errors, unknown, origin, strict=strict, alone=alone)


def _load_mixture(origin: Origin, *, strict: bool, alone: bool) -> MixtureConfig:
    unknown = list(unknown_keys.find(walk_mixture(origin.raw), None))
    config, errors = _validate(MixtureConfig, origin.raw, unknown)
    errors += mixture.find(config) if config is not None and not errors else ()
    return _checked(config, errors, unknown, origin, strict=strict, alone=alone)


def _validate(kind: type[D], raw: RawMapping, unknown: Sequence[Unknown]) -> tuple[D | None, list[Finding]]:
    """The document, if it has the right form, and what is wrong with it. Keys that are misspelt are not missing."""
    errors: list[Finding] = [u for u in unknown if u.meant]
    try:
        return kind.model_validate(raw), errors
    except ValidationError as error:
        meant = _meant(unknown)
        return None, [*errors, *(f for f in schema_errors.find(error) if f.path not in meant)]


def _meant(unknown: Sequence[Unknown]) -> set[KeyPath]:
    """The keys that others are nearly."""
    return {(*u.path[:-1], u.meant) for u in unknown if u.meant}


def _checked(
    config: D | None,
    errors: Sequence[Finding],
    unknown: Sequence[Unknown],
    origin: Origin,
    *,
    strict: bool,
    alone: bool,
) -> D:
    """The config with its warnings. Raises ConfigError if there are errors."""
    warnings = [*(u for u in unknown if not u.meant), *_repeated(origin)]
    if alone and "name" in origin.raw:
        warnings.append(Finding(("name",), "`name` is for configs of several documents and has no effect here"))
    ConfigError.raise_if_any(origin.problems([*errors, *warnings] if strict else errors))
    assert config is not None
    return config.with_origin(origin.with_warnings(warnings))


def _method(raw: RawMapping) -> Method | None:
    """The merge method, even if its key is misspelt; None if there is none of that name."""
    key = next((key for key in raw if unknown_keys.closest(key, ["merge_method"])), "merge_method")
    name = raw.get("merge_method", raw.get(key))
    return methods.get(name) if isinstance(name, str) and name in methods.names() else None


def _unknown_method(raw: RawMapping) -> Iterator[Finding]:
    name = raw.get("merge_method")
    if not isinstance(name, str) or name in methods.names():
        return
    meant = unknown_keys.closest(name, methods.names())
    hint = f"did you mean `{meant}`?" if meant else f"the methods are: {', '.join(methods.names())}"
    yield Finding(("merge_method",), f"`{name}` is not a merge method", hint)


def _parts(raw: RawMapping, meant: set[KeyPath]) -> Iterator[Finding]:
    """Exactly one of `models`, `slices` and `modules` has entries; in a module, one of the first two."""
    yield from _one_has_entries(raw, ("models", "slices", "modules"), (), meant)
    modules = raw.get("modules")
    for name, module in modules.items() if isinstance(modules, Mapping) else ():
        if isinstance(module, Mapping):
            yield from _one_has_entries(module, ("models", "slices"), ("modules", name), meant)


def _one_has_entries(raw: RawMapping, keys: Sequence[str], path: KeyPath, meant: set[KeyPath]) -> Iterator[Finding]:
    given = [key for key in keys if _is_set(raw, key) or (*path, key) in meant]
    if not given:
        inside = f" in {dotted(path)}" if path else ""
        last = keys[-1]
        names = ", ".join(f"`{key}`" for key in keys[:-1])
        yield Finding(path, f"there is nothing to merge{inside}: neither {names} nor `{last}` has entries")
    if len(given) > 1:
        what = f"`{given[0]}` and `{given[1]}` both have entries, and only one of them can"
        yield Finding((*path, given[1]), what)


def _tokenizers(raw: RawMapping) -> Iterator[Finding]:
    """At most one of the two forms in which a tokenizer is asked for."""
    if _is_set(raw, "tokenizer") and _is_set(raw, "tokenizer_source"):
        hint = "leave out `tokenizer_source`, the older form of `source` in `tokenizer`"
        yield Finding(("tokenizer_source",), "`tokenizer` and `tokenizer_source` are both given", hint)


def _is_set(raw: RawMapping, key: str) -> bool:
    """Whether mergekit takes `key` for given. An empty `tokenizer` asks for the default one; all else must say more."""
    return raw.get(key) is not None if key.startswith("tokenizer") else bool(raw.get(key))


def _repeated(origin: Origin) -> Iterator[Finding]:
    for path, line in origin.repeated:
        yield Finding(path, f"`{path[-1]}` is given twice, and what line {line} says has no effect")


def _read(path: Path) -> tuple[str, Path]:
    """The text of a file, and its path."""
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ConfigError.at(path, f"this is no config: it has more than {MOST_BYTES / 1e6:g} MB")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError.at(path, "there is no such file", _similar_file(path)) from None
    except IsADirectoryError:
        raise ConfigError.at(path, "expected a YAML file, found a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ConfigError.at(path, f"can't be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return data.decode("utf-8-sig"), path
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError.at(f"{path}:{line}", f"not UTF-8 text: byte 0x{data[error.start]:02x}") from None


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder `{path.parent}` either"
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean `{path.with_name(close[0])}`?" if close else ""


def _in_memory(mapping: Mapping[str, Any], label: str) -> Origin:
    if not isinstance(mapping, Mapping):
        raise ConfigError.at(label, f"expected a mapping with `merge_method`, found {shown(mapping)}")
    budget = iter(range(positions.MOST_VALUES))
    return Origin(raw=_copy(mapping, budget, 0), label=label)


def _copy(value: Any, budget: Iterator[int], depth: int) -> Any:
    """As YAML would have read it: lists for tuples, text for paths and model references."""
    if next(budget, None) is None or depth > positions.DEEPEST:
        raise ConfigError.at("config", "too many values, or nested too deeply")
    if isinstance(value, Mapping):
        return {_text(key): _copy(one, budget, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(one, budget, depth + 1) for one in value]
    if isinstance(value, ModelReference):
        return value.as_yaml()
    return _text(str(value) if isinstance(value, Path) else value)


def _text(value: Any) -> Any:
    """The same. Raises ConfigError for text that could not be written."""
    try:
        return positions.whole_characters(value) if isinstance(value, str) else value
    except UnicodeError:
        raise ConfigError.at("config", f"{shown(value)} holds half of a character") from None
