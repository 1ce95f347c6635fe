"""Parameters outside of the range that they are meant for: what can't be meant is an error, all else is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mergecore.errors import Problem
from mergecore.plan.plan import OutputTensor

_FRACTIONS = ("density", "gamma", "select_topk")
"""Shares of the elements of a tensor. mergekit takes more than 1 for 1."""
_NEVER_NEGATIVE = ("density", "gamma")


def range_problems(where: str, tensors: Iterable[OutputTensor]) -> Iterator[Problem]:
    """Values that no method can make sense of."""
    for name, value in sorted(_values(_NEVER_NEGATIVE, tensors)):
        if value < 0:
            yield Problem(where, f"`{name}` is {value:g}, expected a fraction from 0 to 1")


def range_notes(where: str, tensors: Iterable[OutputTensor]) -> Iterator[str]:
    """Values that do less, or more, than one may think."""
    for name, value in sorted(_values((*_FRACTIONS, "t"), tensors)):
        if 0 <= value <= 1:
            continue
        if name == "t":
            yield f"{where}: `t` is {value:g}, which goes beyond the two models: from 0 to 1 is between them"
        else:
            yield f"{where}: `{name}` is {value:g}, which counts like {min(max(value, 0), 1)}: it is a fraction"


def _values(names: Iterable[str], tensors: Iterable[OutputTensor]) -> set[tuple[str, float]]:
    """Each value that one of the parameters has anywhere."""
    distinct = {id(tensor.params): tensor.params for tensor in tensors if tensor.params is not None}
    settings = ((name, getattr(params, name, ())) for params in distinct.values() for name in names)
    return {(name, v) for name, value in settings for v in (value if isinstance(value, tuple) else (value,))}
