"""Merges of tensors that are in memory, with the arithmetic and the bits of a merge of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from mergecore import methods
from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.config.setting import SettingError, convert, shown
from mergecore.config.unknown_keys import closest
from mergecore.errors import ConfigError, MergeError, PlanError, Problem, RunError
from mergecore.methods import Method, Parameter, Params, Scope, Target, plugins
from mergecore.stream.backend import choose_backend
from mergecore.stream.reader import torch_dtype
from mergecore.stream.solve import solve
from mergecore_kernels.operations import CHUNK, Combine, Measure, row_length, whole_rows
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace

StateDict = Mapping[str, Tensor]
DtypeLike = torch.dtype | str | None
T = TypeVar("T")

_CPU_TILE = 4 * CHUNK
_GPU_TILE = 64 * CHUNK
"""Elements that are worked on at a time. Results don't depend on it."""
_SCRATCH_BYTES = 1 << 26
"""What an operation may hold beside its tile-sized buffers."""
_DTYPES = {torch_dtype(dtype): dtype for dtype in Dtype}


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


@dataclass(frozen=True, slots=True)
class _Task:
    """One tensor to merge."""

    inputs: tuple[Tensor, ...]
    """Where deltas are combined, without the base."""
    base: Tensor | None
    """What deltas are taken from."""
    params: Params | None
    """None: the inputs are equal, and one is copied."""
    target: Target
    dtype: torch.dtype
    compute: torch.dtype


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
    params = _params(method, values, base_index, labels)
    planner = _Planner(method, params, base_index, labels, seed, _dtype(dtype, "dtype"), _dtype(out_dtype, "out_dtype"))
    problems: list[Problem] = []
    tasks: dict[str, _Task] = {}
    for key in states[0]:
        try:
            tasks[key] = planner.task(key, [state[key] for state in states])
        except MergeError as error:
            problems += error.problems
    PlanError.raise_if_any(problems)
    with torch.no_grad():
        return _run(method, tasks)


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
                names = ", ".join(f"`{key}`" for key in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
                what = f"lacks {names} {who}" if who else f"has {names}, which {labels[0]} lacks"
                yield Problem(label, f"{what} ({len(lacking)} in all)" if len(lacking) > 3 else what)


def _params(method: Method, values: Mapping[str, Any], base_index: int | None, labels: Sequence[str]) -> Params:
    """The parameters, converted as those of a config are. Raises ConfigError."""
    given = {key.removesuffix("_"): value for key, value in values.items()}
    problems = list(_unknown(method, given))
    found: dict[str, Any] = {}
    for p in method.parameters:
        try:
            found[p.name] = _values(p, given, base_index, labels)
        except SettingError as error:
            problems.append(Problem(p.name, str(error)))
    ConfigError.raise_if_any(problems)
    try:
        return method.params.model_validate(found)
    except ValidationError as error:
        raise ConfigError(*(Problem(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())) from None


def _unknown(method: Method, given: Mapping[str, Any]) -> Iterator[Problem]:
    known = [p.name for p in method.parameters]
    for key in given:
        if key not in known:
            meant = closest(key, known, given)
            hint = f"did you mean `{meant}`?" if meant else f"its parameters are: {', '.join(known) or 'none'}"
            yield Problem(key, f"`{key}` is not a parameter of `{method.name}`", hint)


def _values(p: Parameter, given: Mapping[str, Any], base_index: int | None, labels: Sequence[str]) -> Any:
    """One value, or one of each model. Raises SettingError."""
    value: Any = given.get(p.name)
    plain = value.tolist() if hasattr(value, "tolist") else value  # of arrays and tensors
    if p.scope is Scope.SHARED:
        return _one(p, plain)
    owners = [label for i, label in enumerate(labels) if p.scope is Scope.INPUT or i != base_index]
    if not isinstance(plain, list | tuple):
        return (_one(p, plain),) * len(owners)
    if len(plain) != len(owners):
        raise SettingError(f"expected {len(owners)} values, one for each of {', '.join(owners)}, found {len(plain)}")
    return tuple(_one(p, one) for one in plain)


def _one(p: Parameter, value: object) -> Any:
    if value is None:
        if p.required:
            raise SettingError(f"`{p.name}` is missing, and has no default")
        return p.default
    if not isinstance(value, bool | int | float | str):
        raise SettingError(f"expected a single value, found {shown(value)}")
    return convert(value, p.type)


def _dtype(value: DtypeLike, argument: str) -> Dtype | None:
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    try:
        return Dtype.from_torch_name(name)
    except KeyError:
        raise ConfigError.at(argument, f"`{name}` is not a floating point type") from None


@dataclass(frozen=True, slots=True)
class _Planner:
    """Makes the tasks of one merge."""

    method: Method
    params: Params
    base_index: int | None
    labels: Sequence[str]
    seed: int
    dtype: Dtype | None
    out_dtype: Dtype | None

    def task(self, name: str, tensors: Sequence[Tensor]) -> _Task:
        """Raises MergeError for tensors that can't be merged, and what the recipe says of its parameters."""
        self._check(name, tensors)
        stored = promote(_DTYPES[tensor.dtype] for tensor in tensors)
        floating = stored.is_floating
        out = (self.out_dtype or self.dtype or stored) if floating else stored
        double = floating and Dtype.F64 in (self.dtype, stored)
        target = Target(
            name, tensors[0].numel(), tuple(range(len(tensors))), self.base_index, self.seed, tuple(tensors[0].shape)
        )
        task = _Task(
            inputs=tuple(tensors),
            base=None,
            params=self.params if floating and target.n else None,
            target=target,
            dtype=torch_dtype(out),
            compute=torch.float64 if double else torch.float32,
        )
        if task.params is not None and self.method.space == "deltas" and self.base_index is not None:
            task = _as_deltas(task, self.base_index)
        if task.params is not None:
            with plugins.blamed(self.method, name, PlanError):
                self.method.recipe(task.params, task.target)
        return task

    def _check(self, name: str, tensors: Sequence[Tensor]) -> None:
        unknown = next((tensor.dtype for tensor in tensors if tensor.dtype not in _DTYPES), None)
        if unknown is not None:
            raise PlanError.at(name, f"tensors of the type {unknown} can't be merged")
        for what, values in (
            ("shapes", [list(tensor.shape) for tensor in tensors]),
            ("devices", [str(tensor.device) for tensor in tensors]),
        ):
            if any(value != values[0] for value in values):
                raise PlanError.at(name, f"the tensors have different {what}: {self._each(values)}")
        if all(tensor.is_floating_point() for tensor in tensors):
            return
        if len({tensor.dtype for tensor in tensors}) > 1:
            found = self._each([tensor.dtype for tensor in tensors])
            raise PlanError.at(name, f"the tensors are not all floating point, so they can't be merged: {found}")
        for tensor, label in zip(tensors, self.labels, strict=True):
            if not torch.equal(tensor, tensors[0]):
                what = f"is not floating point, so it can only be copied, but {label} differs from {self.labels[0]}"
                raise PlanError.at(name, what)

    def _each(self, values: Sequence[object]) -> str:
        return ", ".join(f"{value} in {label}" for value, label in zip(values, self.labels, strict=True))


def _as_deltas(task: _Task, base: int) -> _Task:
    """With the base apart from the inputs. The base alone is copied."""
    others = tuple(i for i in range(len(task.inputs)) if i != base)
    if not others:
        return replace(task, params=None)
    target = replace(task.target, models=others, base=None)
    return replace(task, inputs=tuple(task.inputs[i] for i in others), base=task.inputs[base], target=target)


def _run(method: Method, tasks: Mapping[str, _Task]) -> dict[str, Tensor]:
    devices = {device: _Device(device) for device in {task.inputs[0].device for task in tasks.values()}}
    merged = [task for task in tasks.values() if task.params is not None]
    survey = _survey(method, merged, devices) if method.survey is not None and merged else None
    return {
        name: devices[task.inputs[0].device].merged(method, replace(task, target=replace(task.target, survey=survey)))
        for name, task in tasks.items()
    }


def _survey(method: Method, tasks: Sequence[_Task], devices: Mapping[torch.device, _Device]) -> Any:
    """What the method wants to know of all tensors before the first one is merged."""
    assert method.survey is not None
    looks = method.survey([(task.params, task.target) for task in tasks])
    try:
        while True:
            look = next(looks)
            for task in tasks:
                question = look.question(task.params, task.target)
                if question is not None:
                    look.add(task.target, devices[task.inputs[0].device].measured(question, task))
    except StopIteration as end:
        return end.value


class _Device:
    """Merges tensors on one device, in scratch memory that is kept."""

    def __init__(self, device: torch.device) -> None:
        backend = choose_backend("auto", str(device))
        self._operations = import_module(f"mergecore_kernels.{backend.name}_ops")
        self._workspace = Workspace(device, _SCRATCH_BYTES)
        self._device = device
        self._step = _CPU_TILE if device.type == "cpu" else _GPU_TILE

    def measured(self, question: Measure, task: _Task) -> Any:
        """The answer to a question about all of a tensor."""
        with self._current():
            return self._operations.measure(question, _tiles(task, self._step), self._workspace)

    def merged(self, method: Method, task: _Task) -> Tensor:
        """A new tensor."""
        if task.params is None:
            return task.inputs[0].to(task.dtype, copy=True, memory_format=torch.contiguous_format)
        tiles = _tiles(task, self._step)

        def measure(question: Measure) -> Any:
            return self._operations.measure(question, tiles, self._workspace)

        with self._current():
            combine = solve(method, task.params, task.target, measure)
            columns = row_length(combine)
            if columns > 1:
                tiles = _tiles(task, whole_rows(self._step, columns))
            return self._combined(method, task, combine, tiles)

    def _combined(self, method: Method, task: _Task, combine: Combine, tiles: list[Tile]) -> Tensor:
        out = torch.empty(task.target.n, dtype=task.dtype, device=self._device)
        for tile in tiles:
            with plugins.blamed(method, task.target.name, RunError):
                self._operations.combine(combine, tile, out[tile.start : tile.start + len(tile)], self._workspace)
        return out.view(task.target.shape)

    def _current(self) -> AbstractContextManager[Any]:
        """Kernels are launched on the current device."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _tiles(task: _Task, step: int) -> list[Tile]:
    """Views of the tensors, so many elements at a time. A tensor whose elements don't follow one another is copied."""
    inputs = [x.detach().reshape(-1) for x in task.inputs]
    base = None if task.base is None else task.base.detach().reshape(-1)
    return [
        Tile(
            start,
            [x[start : start + step] for x in inputs],
            None if base is None else base[start : start + step],
            task.compute,
        )
        for start in range(0, task.target.n, step)
    ]
