"""The tensors to merge, each with all that is needed for it; checked before the first one is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.errors import ConfigError, PlanError
from mergecore.methods import Method, Params, Target, plugins
from mergecore.stream.torch_dtypes import torch_dtype

DtypeLike = torch.dtype | str | None
_DTYPES = {torch_dtype(dtype): dtype for dtype in Dtype}


@dataclass(frozen=True, slots=True)
class Task:
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


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes the tasks of one merge."""

    method: Method
    params: Params
    base_index: int | None
    labels: Sequence[str]
    seed: int
    dtype: Dtype | None
    out_dtype: Dtype | None

    def task(self, name: str, tensors: Sequence[Tensor]) -> Task:
        """Raises MergeError for tensors that can't be merged, and what the recipe says of its parameters."""
        self._check(name, tensors)
        stored = promote(_DTYPES[tensor.dtype] for tensor in tensors)
        floating = stored.is_floating
        out = (self.out_dtype or self.dtype or stored) if floating else stored
        double = floating and Dtype.F64 in (self.dtype, stored)
        target = Target(
            name, tensors[0].numel(), tuple(range(len(tensors))), self.base_index, self.seed, tuple(tensors[0].shape)
        )
        task = Task(
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


def _as_deltas(task: Task, base: int) -> Task:
    """With the base apart from the inputs. The base alone is copied."""
    others = tuple(i for i in range(len(task.inputs)) if i != base)
    if not others:
        return replace(task, params=None)
    target = replace(task.target, models=others, base=None)
    return replace(task, inputs=tuple(task.inputs[i] for i in others), base=task.inputs[base], target=target)


def dtype_of(value: DtypeLike, argument: str) -> Dtype | None:
    """The type that an argument names. Raises ConfigError."""
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    try:
        return Dtype.from_torch_name(name)
    except KeyError:
        raise ConfigError.at(argument, f"`{name}` is not a floating point type") from None
