"""YAML with the line of every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mergecore.config.origin import KeyPath, Origin
from mergecore.config.setting import shown
from mergecore.errors import ConfigError

MOST_VALUES = 250_000
"""Aliases of aliases can make a short file mean billions of values. No merge needs this many."""
DEEPEST = 50
MERGE_TAG = "tag:yaml.org,2002:merge"
MAPPING_TAG = "tag:yaml.org,2002:map"
LIST_TAG = "tag:yaml.org,2002:seq"


def read(text: str, path: Path) -> Origin:
    """Parse the text of `path`. Raises ConfigError, with the line, for anything but one mapping in valid YAML."""
    document = _Document(path)
    try:
        root = _only_document(text, path)
        data = None if root is None else document.build(root, ())
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, path) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character {chr(error.character)!r} is not allowed in YAML"
        raise ConfigError.at(f"{path}:{line}", what) from None
    except RecursionError:
        raise ConfigError.at(path, "nested too deeply") from None
    if data is None:
        raise ConfigError.at(path, "the file is empty: expected a mapping with `merge_method`")
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else shown(data)
        raise ConfigError.at(f"{path}:1", f"expected a mapping with `merge_method`, found {found}")
    return Origin(path, text, data, document.lines, tuple(document.repeated))


def _only_document(text: str, path: Path) -> yaml.Node | None:
    documents = yaml.compose_all(text, yaml.SafeLoader)
    first = next(documents, None)
    second = next(documents, None)
    if second is not None:
        raise ConfigError.at(
            f"{path}:{_line(second)}",
            "a second YAML document begins here, but multi-stage configs are not supported yet",
            "put each document into a file of its own and merge one after the other",
        )
    return first


def _syntax_error(error: yaml.MarkedYAMLError, path: Path) -> Exception:
    mark = error.problem_mark or error.context_mark
    what = f"broken YAML: {error.problem or error.context}"
    if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        what += f" ({error.context} that begins in line {error.context_mark.line + 1})"
    hint = "indent with spaces, YAML allows no tabs there" if "\\t" in what else ""
    return ConfigError.at(f"{path}:{mark.line + 1}" if mark else path, what, hint)


class _Document:
    """Turns nodes into plain values and notes the line of each key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.repeated: list[tuple[KeyPath, int]] = []
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, key_path: KeyPath) -> Any:
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
            raise self._error(node, f"the YAML tag `{node.tag}` is not allowed")
        return self._scalar(node)

    def _item(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self.lines[key_path] = _line(node)
        return self.build(node, key_path)

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
                self.repeated.append(((*key_path, key), own[key]))
            own[key] = self.lines[(*key_path, key)] = _line(key_node)
            built[key] = self.build(value_node, (*key_path, key))
        return built

    def _merged(self, node: yaml.Node, key_path: KeyPath) -> dict[Any, Any]:
        """What `<<: *one` or `<<: [*first, *second]` stands for; of several the first counts most."""
        built: dict[Any, Any] = {}
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "`<<` merges mappings, and this is none")
            built.update(self.build(source, key_path))
        return built

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be plain text, not a list or a mapping")
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        """Only plain data is ever made: a tag such as `!!python/object` is an error, nothing of it is run."""
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            if isinstance(error, yaml.constructor.ConstructorError):
                raise self._error(node, f"the YAML tag `{tag}` is not allowed") from None
            raise self._error(node, f"{shown(node.value)} is not a valid `{tag}`") from None

    def _error(self, node: yaml.Node, what: str) -> Exception:
        return ConfigError.at(f"{self.path}:{_line(node)}", what)


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line + 1
    return line
