"""The two calls: one tensor of each model, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mergecore import methods
from mergecore.errors import MergeError, PlanError, Problem, some_of
from mergecore.in_memory.parameters import parameters
from mergecore.in_memory.run import run
from mergecore.in_memory.tasks import DtypeLike, Planner, Task, dtype_of
from mergecore.methods import Method, plugins

StateDict = Mapping[str, Tensor]
T = TypeVar("T")


def merge_tensors(
    method: str,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    name: str = "tensor",
    seed: int = 0,
    dtype: DtypeLike = None,
    out_dtype: DtypeLike = None,
    **params: Any,
) -> Tensor:
    """Merge tensors of one shape into a new one.

    `base` may be one of `tensors`, the very same object; else it is taken for the last one. A parameter that each model
    has one of is a sequence, in the order of the tensors (without the base, where it belongs to the others), or one
    value for all. `lambda` is written `lambda_`. `name` and `seed` are what random numbers depend on.
    The result has `out_dtype`, or else `dtype`, or else the type that the tensors have in common; it is computed in
    float32, or in float64 if one of these types is that, on the device that the tensors are on. Values that are not
    finite are merged like the others.

    Raises MergeError, with all problems found.
    """
    models, base_index = _with_base(list(tensors), base)
    labels = _labels("tensors", len(tensors), len(models))
    states = [{name: tensor} for tensor in models]
    return _merge(method, states, base_index, labels, params, seed=seed, dtype=dtype, out_dtype=out_dtype)[name]


def merge_state_dicts(
    method: str,
    models: Sequence[StateDict],
    base: StateDict | None = None,
    *,
    seed: int = 0,
    dtype: DtypeLike = None,
    out_dtype: DtypeLike = None,
    **params: Any,
) -> dict[str, Tensor]:
    """Merge models, each a mapping from name to tensor such as `module.state_dict()`, into new tensors.

    All must have the same names and shapes. Tensors that are not floating point are copied, and must be equal.
    Otherwise it does what `merge_tensors` does, for each name. All tensors are checked before the first one is merged.
    """
    states, base_index = _with_base(list(models), base)
    labels = _labels("models", len(models), len(states))
    return _merge(method, states, base_index, labels, params, seed=seed, dtype=dtype, out_dtype=out_dtype)


def _with_base(models: list[T], base: T | None) -> tuple[list[T], int | None]:
    """The models with the base among them, and its place there: the last, if it isn't one of them already."""
    if base is None:
        return models, None
    place = next((i for i, model in enumerate(models) if model is base), None)
    return (models, place) if place is not None else ([*models, base], len(models))


def _labels(kind: str, n: int, n_with_base: int) -> list[str]:
    """Names for messages."""
    return [f"{kind}[{i}]" for i in range(n)] + ["base"] * (n_with_base - n)


def _merge(
    name: str,
    states: Sequence[StateDict],
    base_index: int | None,
    labels: Sequence[str],
    values: Mapping[str, Any],
    *,
    seed: int,
    dtype: DtypeLike,
    out_dtype: DtypeLike,
) -> dict[str, Tensor]:
    plugins.load()
    method = methods.get(name, "method")
    PlanError.raise_if_any(_input_problems(method, base_index, labels))
    PlanError.raise_if_any(_key_problems(states, labels))
    params = parameters(method, values, base_index, labels)
    planner = Planner(
        method, params, base_index, labels, seed, dtype_of(dtype, "dtype"), dtype_of(out_dtype, "out_dtype")
    )
    problems: list[Problem] = []
    tasks: dict[str, Task] = {}
    for key in states[0]:
        try:
            tasks[key] = planner.task(key, [state[key] for state in states])
        except MergeError as error:
            problems += error.problems
    PlanError.raise_if_any(problems)
    with torch.no_grad():
        return run(method, tasks)


def _input_problems(method: Method, base_index: int | None, labels: Sequence[str]) -> Iterator[Problem]:
    """Whether these are the models that the method takes."""
    if base_index is None and method.base == "required":
        yield Problem("base", f"`{method.name}` needs a base")
    if base_index is not None and method.base == "ignored":
        yield Problem("base", f"`{method.name}` takes no base", "put it among the others, if it is to be merged")
    beside = base_index is not None and not method.base_counts
    n = len(labels) - beside
    fewest, most = method.models
    if n < fewest or (most is not None and n > most):
        count = f"{fewest}" if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
        counted = " beside the base" if beside else ", the base counted" if base_index is not None else ""
        yield Problem("", f"`{method.name}` takes {count}{counted}, found {n}: {', '.join(labels)}")


def _key_problems(states: Sequence[StateDict], labels: Sequence[str]) -> Iterator[Problem]:
    """Whether all models have the tensors of the first."""
    for state, label in zip(states, labels, strict=True):
        if not isinstance(state, Mapping):
            hint = "take its state_dict()" if hasattr(state, "state_dict") else ""
            yield Problem(label, f"expected a mapping from name to tensor, found {type(state).__name__}", hint)
            return
    for state, label in zip(states[1:], labels[1:], strict=True):
        for one, other, who in ((states[0], state, f"that {labels[0]} has"), (state, states[0], "")):
            lacking = [key for key in one if key not in other]
            if lacking:
                names = some_of(f"`{key}`" for key in lacking)
                what = f"lacks {names} {who}" if who else f"has {names}, which {labels[0]} lacks"
                yield Problem(label, f"{what} ({len(lacking)} in all)" if len(lacking) > 3 else what)
