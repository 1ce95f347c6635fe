"""Parameters outside of the range that they are meant for: what can't be meant is an error, all else is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mergecore.errors import Problem
from mergecore.methods import Params
from mergecore.methods.sce import SceParams
from mergecore.methods.slerp import SlerpParams
from mergecore.methods.task_vectors import BreadcrumbsParams, SparseParams
from mergecore.plan.plan import OutputTensor

_SHARES: tuple[tuple[type[Params], str], ...] = ((SparseParams, "density"), (BreadcrumbsParams, "gamma"))
"""Fractions of the elements, where less than none makes no sense. mergekit takes more than 1 for 1."""
_FRACTIONS: tuple[tuple[type[Params], str], ...] = (*_SHARES, (SceParams, "select_topk"))
"""The same, and one that mergekit takes for 0 where it is negative."""


def range_problems(where: str, tensors: Iterable[OutputTensor]) -> Iterator[Problem]:
    """Values that no method can make sense of."""
    for name, value in _values(_SHARES, tensors):
        if value < 0:
            yield Problem(where, f"`{name}` is {value:g}, expected a fraction from 0 to 1")


def range_notes(where: str, tensors: Iterable[OutputTensor]) -> Iterator[str]:
    """Values that do less, or more, than one may think."""
    tensors = list(tensors)
    for name, value in _values(_FRACTIONS, tensors):
        if not 0 <= value <= 1:
            yield f"{where}: `{name}` is {value:g}, which counts like {min(max(value, 0), 1)}: it is a fraction"
    for name, value in _values([(SlerpParams, "t")], tensors):
        if not 0 <= value <= 1:
            yield f"{where}: `{name}` is {value:g}, which goes beyond the two models: from 0 to 1 is between them"


def _values(parameters: Iterable[tuple[type[Params], str]], tensors: Iterable[OutputTensor]) -> list[tuple[str, float]]:
    """The parameters' names, with each value that they have anywhere."""
    distinct = {id(tensor.params): tensor.params for tensor in tensors}.values()
    found = (
        (name, getattr(params, name)) for kind, name in parameters for params in distinct if isinstance(params, kind)
    )
    return sorted({(name, v) for name, value in found for v in (value if isinstance(value, tuple) else (value,))})
