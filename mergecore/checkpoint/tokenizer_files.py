"""The files of a model's tokenizer, which lie in its folder or are still to be written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergecore.checkpoint.json_file import check_size, parse_json
from mergecore.errors import CheckpointError

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATE_IN_JSON = "chat_template.json"
GENERATION = "generation_config.json"
VOCABULARIES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "qwen.tiktoken", "tekken.json",
    "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json",
)  # fmt: skip
"""Other forms of what is in tokenizer.json."""
TOKENIZER_FILES = (FAST, SETTINGS, "special_tokens_map.json", *VOCABULARIES, TEMPLATE, TEMPLATE_IN_JSON)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The tokenizer of a model, file by file, with the settings for generation, which name tokens too."""

    folder: Path
    """Where the files are, or after a download will be."""
    written: Mapping[str, bytes | Mapping[str, Any]] = field(default_factory=dict)
    """By name, files that take the place of those in the folder. What is no bytes is what a JSON file says."""
    left_out: frozenset[str] = frozenset()
    """Files of the folder that don't count."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none. Raises CheckpointError."""
        if name in self.written:
            return self.content(name)
        path = self.folder / name
        if name in self.left_out or not path.is_file():
            return None
        try:
            check_size(path, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError.at(path, f"can't be read: {error.strerror}") from error

    def settings(self, name: str) -> dict[str, Any]:
        """What a JSON file says; empty if there is none. Raises CheckpointError."""
        content = self.read(name)
        return {} if content is None else parse_json(self.folder / name, content)

    def content(self, name: str) -> bytes:
        """Of a file that is written."""
        content = self.written[name]
        if isinstance(content, bytes):
            return content
        indent, separators = (None, (",", ":")) if name == FAST else (2, None)  # one line, as it can have a million
        return (json.dumps(content, indent=indent, separators=separators, ensure_ascii=False) + "\n").encode()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.written or (name not in self.left_out and (self.folder / name).is_file())

    @property
    def copied(self) -> tuple[str, ...]:
        """The files of the folder that count, if they are there."""
        names = (*TOKENIZER_FILES, GENERATION)
        return tuple(name for name in names if name not in self.left_out and name not in self.written)

    def replaced(
        self, written: Mapping[str, bytes | Mapping[str, Any]], left_out: frozenset[str] = frozenset()
    ) -> TokenizerFiles:
        """The same with other files in the place of some, and without some."""
        names = self.left_out | left_out
        kept = {name: content for name, content in self.written.items() if name not in names}
        return TokenizerFiles(self.folder, kept | dict(written), names - written.keys())
