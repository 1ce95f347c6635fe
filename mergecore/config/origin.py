"""Where a config came from: its file, its text, and the line of each key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from mergecore.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
"""The way to a value: `("models", 0, "parameters", "weight")`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell about a key. `Origin.problems` gives it a place in the file."""

    path: KeyPath
    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Configs that say the same are equal wherever they came from, so no field here is compared."""

    path: Path | None = field(default=None, compare=False)
    """The file; None for a mapping in memory."""
    text: str = field(default="", compare=False)
    """The YAML as it was read, comments and all; empty for a mapping in memory."""
    raw: Mapping[Any, Any] = field(default_factory=dict, compare=False)
    """What the YAML says, before any of it was checked."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    """From key path to line, counted from 1."""
    first_line: int = field(default=0, compare=False)
    """Where the document begins, if the file has several; else 0."""
    label: str = field(default="config", compare=False)
    """Names a mapping in memory."""
    repeated: tuple[tuple[KeyPath, int], ...] = field(default=(), compare=False)
    """Keys that occur again in the same mapping, each with the line of the one that is not used."""
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    """What was found in the config that has no effect."""

    def with_warnings(self, findings: Iterable[Finding]) -> Origin:
        return replace(self, warnings=self.problems(findings))

    def where(self, *key_path: str | int) -> str:
        """`file.yml:LINE` of a key, or of the nearest one around it; for a mapping in memory the key path."""
        if self.path is None:
            return f"{self.label}: {dotted(key_path)}" if key_path else self.label
        line = self.line(key_path)
        return f"{self.path}:{line}" if line else str(self.path)

    def line(self, key_path: KeyPath) -> int:
        """The line of the nearest known key around `key_path`; 0 if there is none."""
        around = (key_path[:n] for n in range(len(key_path), 0, -1))
        return next((self.lines[path] for path in around if path in self.lines), self.first_line)

    def problems(self, findings: Iterable[Finding]) -> tuple[Problem, ...]:
        """The findings with their places, in the order of the lines, none of them twice."""
        ordered = sorted(findings, key=lambda finding: self.line(finding.path))
        return tuple(dict.fromkeys(Problem(self.where(*f.path), f.what, f.hint) for f in ordered))


def dotted(key_path: KeyPath) -> str:
    """`models[0].parameters.weight`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in key_path).lstrip(".")
