"""YAML with the line of every key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergecore.config.origin import KeyPath, Origin
from mergecore.config.setting import shown
from mergecore.errors import ConfigError

MOST_VALUES = 250_000
"""Aliases of aliases can make a short file mean billions of values. No merge needs this many."""
DEEPEST = 50
LONGEST_NUMBER = 1000
"""Characters."""
MERGE_TAG = "tag:yaml.org,2002:merge"
MAPPING_TAG = "tag:yaml.org,2002:map"
LIST_TAG = "tag:yaml.org,2002:seq"
TEXT_TAG = "tag:yaml.org,2002:str"
NULL_TAG = "tag:yaml.org,2002:null"


def read(text: str, path: Path) -> tuple[Origin, ...]:
    """Parse the documents in the text of `path`, one or more. Those that are empty are left out.

    Raises ConfigError, with the line, for anything but mappings in valid YAML.
    """
    reader = _Reader(path, text)
    try:
        origins = tuple(reader.read(root) for root in yaml.compose_all(text, yaml.SafeLoader) if not _is_empty(root))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, path) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character {chr(error.character)!r} is not allowed in YAML"
        raise ConfigError.at(f"{path}:{line}", what) from None
    except RecursionError:
        raise ConfigError.at(path, "nested too deeply") from None
    if not origins:
        raise ConfigError.at(path, "the file is empty: expected a mapping with `merge_method`")
    return origins if len(origins) > 1 else (replace(origins[0], first_line=0),)


def _is_empty(root: yaml.Node) -> bool:
    """What `---` with nothing after it gives."""
    return isinstance(root, yaml.ScalarNode) and root.tag == NULL_TAG


def _syntax_error(error: yaml.MarkedYAMLError, path: Path) -> Exception:
    mark = error.problem_mark or error.context_mark
    what = f"broken YAML: {error.problem or error.context}"
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        what += f" ({error.context} that begins in line {error.context_mark.line + 1})"
    hint = "indent with spaces, YAML allows no tabs there" if "\\t" in what else ""
    return ConfigError.at(f"{path}:{mark.line + 1}" if mark else path, what, hint)


class _Reader:
    """Turns nodes into plain values and notes the line of each key."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._lines: dict[KeyPath, int] = {}
        self._repeated: list[tuple[KeyPath, int]] = []
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def read(self, root: yaml.Node) -> Origin:
        """One document."""
        self._lines, self._repeated = {}, []
        data = self._build(root, ())
        if not isinstance(data, dict):
            found = "a list" if isinstance(data, list) else shown(data)
            raise self._error(root, f"expected a mapping with `merge_method`, found {found}")
        return Origin(
            self._path,
            text=self._text,
            raw=data,
            lines=self._lines,
            first_line=_line(root),
            repeated=tuple(self._repeated),
        )

    def _build(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._error(node, f"the aliases of this file stand for more than {MOST_VALUES:,} values")
        if len(key_path) > DEEPEST:
            raise self._error(node, "nested too deeply, or an alias that contains itself")
        if isinstance(node, yaml.MappingNode) and node.tag == MAPPING_TAG:
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode) and node.tag == LIST_TAG:
            return [self._item(child, (*key_path, i)) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"the YAML tag `{_shown_tag(node)}` is not allowed")
        return self._scalar(node)

    def _item(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self._lines[key_path] = _line(node)
        return self._build(node, key_path)

    def _mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[Any, Any]:
        """Of a key that occurs twice the last value counts, and any key counts more than what `<<` merges in."""
        built: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE_TAG:
                built.update(self._merged(value_node, key_path))
        own: dict[Any, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE_TAG:
                continue
            key = self._key(key_node)
            if key in own:
                self._repeated.append(((*key_path, key), own[key]))
            own[key] = self._lines[(*key_path, key)] = _line(key_node)
            built[key] = self._build(value_node, (*key_path, key))
        return built

    def _merged(self, node: yaml.Node, key_path: KeyPath) -> dict[Any, Any]:
        """What `<<: *one` or `<<: [*first, *second]` stands for; of several the first counts most."""
        built: dict[Any, Any] = {}
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "`<<` merges mappings, and this is none")
            built.update(self._build(source, key_path))
        return built

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be plain text, not a list or a mapping")
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        """Only plain data is ever made: a tag such as `!!python/object` is an error, nothing of it is run."""
        if node.tag != TEXT_TAG and len(node.value) > LONGEST_NUMBER:  # which could take for ever to convert
            raise self._error(node, f"{shown(node.value)} is not a valid number")
        try:
            value = self._scalars.construct_object(node)
            return whole_characters(value) if isinstance(value, str) else value
        except UnicodeError:
            raise self._error(node, f"{shown(node.value)} holds half of a character") from None
        except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            tag = _shown_tag(node)
            if isinstance(error, yaml.constructor.ConstructorError):
                raise self._error(node, f"the YAML tag `{tag}` is not allowed") from None
            raise self._error(node, f"{shown(node.value)} is not a valid `{tag}`") from None

    def _error(self, node: yaml.Node, what: str) -> Exception:
        return ConfigError.at(f"{self._path}:{_line(node)}", what)


def whole_characters(text: str) -> str:
    """With one character for each pair of escapes that JSON writes for it. Raises UnicodeError where one is alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


def _shown_tag(node: yaml.Node) -> str:
    """As it is written."""
    tag: str = node.tag.replace("tag:yaml.org,2002:", "!!")
    return tag


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line + 1
    return line
