"""What is wrong with many tensors alike, told once, with how many there are and some examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mergecore.errors import Problem

_FEW = 3
"""So many problems are each told by themselves."""
_MOST = 20
"""That are told at all: a screenful."""
_TENSOR = re.compile(r"`[^`]*\.[^`]*`")


def together(found: Iterable[tuple[str, Problem]]) -> Iterator[Problem]:
    """From the names of output tensors and their problems. Those that differ only in the tensor make one."""
    groups: dict[tuple[str, str], list[tuple[str, Problem]]] = {}
    for name, problem in found:
        text = _TENSOR.sub("", str(problem).replace(name, ""))
        groups.setdefault((text, problem.hint), []).append((name, problem))
    for group in groups.values():
        if len(group) <= _FEW:
            yield from (problem for _, problem in group)
        else:
            (_, first), (second, _), (third, _), *others = group
            yield replace(first, what=f"{first.what}; likewise for `{second}`, `{third}` and {len(others)} more")


def first_problems(found: Iterable[tuple[str, Problem]]) -> list[Problem]:
    """The same, and how many there are beyond a screenful."""
    problems = list(together(found))
    if len(problems) > _MOST:
        more = Problem("", f"... and {len(problems) - _MOST} more problems like these")
        problems = [*problems[:_MOST], more]
    return problems
