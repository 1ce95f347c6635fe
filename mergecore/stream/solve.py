"""Runs the recipe of a merge method."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from mergecore.errors import RunError
from mergecore.methods import Method, Params, Target
from mergecore.methods.plugins import blamed
from mergecore_kernels.operations import Combine, Measure


def solve(method: Method, params: Params, target: Target, measure: Callable[[Measure], Any]) -> Combine:
    """What to combine at a tensor; `measure` answers what the recipe asks for before. Raises RunError."""
    asking = questions(method, params, target)
    answer: Any = None
    while True:
        try:
            answer = measure(asking.send(answer))
        except StopIteration as end:
            combine: Combine = end.value
            return combine


def questions(method: Method, params: Params, target: Target) -> Generator[Measure, Any, Combine]:
    """What the recipe asks for, one measurement after another: is sent the answers, returns what to combine.

    Raises RunError.
    """
    with blamed(method, target.name, RunError):
        recipe = method.recipe(params, target)
        if not isinstance(recipe, Generator):
            return _combination(recipe)
        answer: Any = None
        while True:
            try:
                question = recipe.send(answer)
            except StopIteration as end:
                return _combination(end.value)
            if not isinstance(question, Measure):
                raise TypeError(f"expected a measurement of mergecore_kernels.operations, found {question!r:.60}")
            answer = yield question


def _combination(found: Any) -> Combine:
    if not isinstance(found, Combine):
        raise TypeError(f"expected a combination of mergecore_kernels.operations, found {found!r:.60}")
    return found
