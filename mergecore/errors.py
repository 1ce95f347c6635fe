"""Every error that mergecore raises on purpose.

MergeError              exit code 1
├── ConfigError         2   the YAML says what can't be meant: a misspelt key, an unknown method
├── PlanError           2   config and models don't fit together: a missing tensor, two shapes
├── CheckpointError     1   a model folder or file isn't what it should be: truncated, no index
├── RunError            1   the merge began and could not be finished: disk full, NaN in an input
├── EvaluationError     1   a model can't be run here: no transformers, no such device
└── ReleaseError        1   a model can't be published: unfinished, no token, no access

An error carries one or more `Problem`s, so that all that is wrong can be told at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    where: str
    """The place a user can look at: `ties.yml:14`, a file, a model folder. May be empty."""
    what: str
    """What was found and what was expected, naming key, model or tensor."""
    hint: str = ""
    """What to do about it, if that is known."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class MergeError(Exception):
    """Base of all of them. `str()` gives one line per problem, each with its hint."""

    exit_code = 1

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    @classmethod
    def at(cls, where: object, what: str, hint: str = "") -> Self:
        """The error for a single problem."""
        return cls(Problem(str(where), what, hint))

    @classmethod
    def raise_if_any(cls, problems: Iterable[Problem]) -> None:
        """Raise one error that holds all `problems`; return if there are none."""
        found = tuple(problems)
        if found:
            raise cls(*found)

    def __str__(self) -> str:
        return "\n".join(f"{p} (hint: {p.hint})" if p.hint else str(p) for p in self.problems)


class ConfigError(MergeError):
    """The YAML says what can't be meant."""

    exit_code = 2


class PlanError(MergeError):
    """Config and models don't fit together."""

    exit_code = 2


class CheckpointError(MergeError):
    """A model folder or file isn't what it should be."""


class RunError(MergeError):
    """The merge began and could not be finished."""


class EvaluationError(MergeError):
    """A model can't be run here."""


class ReleaseError(MergeError):
    """A model can't be published."""


def some_of(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c, ...`: the first of many names, for a message."""
    shown = list(islice(names, most + 1))
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def size_text(n_bytes: float) -> str:
    """`8.80 GB`; below a tenth of one `15.9 MB`, and below a tenth of that unit `2.6 KB`. GB is 10⁹ bytes."""
    if n_bytes >= 1e8:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} KB"
