"""What a merge method is: parameters, the inputs it takes, and a recipe."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from mergecore_kernels.operations import Combine, Key, Measure

T = TypeVar("T")


class Scope(Enum):
    """How many values a parameter has at one output tensor."""

    SHARED = "one value"
    INPUT = "one value per model"
    TASK = "one value per model other than the base"


PerInput = Annotated[tuple[T, ...], Scope.INPUT]
"""A parameter with a value for each input, in the order of the config."""
PerTask = Annotated[tuple[T, ...], Scope.TASK]
"""A parameter with a value for each input but the base, in the order of the config."""


class Params(BaseModel):
    """A method's parameters, resolved for one output tensor: no gradient or filter is left.

    A subclass annotates each with its type (`float`, `bool`, `int`), in `PerInput[...]` or `PerTask[...]` where each
    model has a value of its own, and describes it in a docstring below. A default is one value, for any scope.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as its method declares it."""

    name: str
    """As written in the YAML."""
    type: type
    scope: Scope
    required: bool
    default: Any
    doc: str


@dataclass(frozen=True, slots=True)
class Target:
    """The tensor that a recipe is for. Its values are not here: recipes ask for measurements."""

    name: str
    """Of the output tensor."""
    n: int
    """Elements."""
    models: tuple[int, ...]
    """Of each input: its position in the config. In space "deltas" the base is not among them."""
    base: int | None
    """In space "weights": which of the inputs is the base model, if one is."""
    seed: int

    def random_keys(self, use: str) -> tuple[Key, ...]:
        """[M] streams of random numbers, one per input, that the seed decides."""
        return tuple(Key.of(use, self.seed, self.name, model) for model in self.models)

    def fixed_keys(self, use: str) -> tuple[Key, ...]:
        """[M] streams of random numbers, one per input, that are the same in every run."""
        return tuple(Key.of(use, 0, self.name, model) for model in self.models)


Recipe: TypeAlias = Generator[Measure, Any, Combine]
"""Yields the measurements it needs, is sent their results, returns the combination."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method. Made by the decorator `method`."""

    name: str
    recipe: Callable[[Any, Target], Recipe | Combine]
    params: type[Params]
    paper: str
    """Title or authors with year and link, or where the method is known from."""
    space: Literal["weights", "deltas"]
    """What is combined: the models' weights, or their differences from the base."""
    base: Literal["required", "optional", "ignored"]
    """Whether a base model is needed. Where it is ignored, a configured base is an ordinary input."""
    models: tuple[int, int | None]
    """Fewest and most inputs, the base counted."""
    measures: str | None
    """What is measured before the tensors are combined; None: nothing, the inputs are read once."""
    missing: Literal["merge", "keep_single", "error"]
    """An optional tensor that some inputs lack: merge those that have it, copy it if only one has it, or fail."""
    random: bool
    """Whether the result depends on the seed."""
    example: Params

    @property
    def doc(self) -> str:
        """What the method does, in a few lines."""
        return (self.recipe.__doc__ or "").strip()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters, in the order of their declaration."""
        return tuple(_parameter(self.params, field) for field in self.params.model_fields)


def _parameter(params: type[Params], field_name: str) -> Parameter:
    field = params.model_fields[field_name]
    scope = next((m for m in field.metadata if isinstance(m, Scope)), Scope.SHARED)
    value_type = field.annotation if scope is Scope.SHARED else get_args(field.annotation)[0]
    value_type = _without_none(value_type)
    return Parameter(
        name=field.alias or field_name,
        type=value_type,
        scope=scope,
        required=field.is_required(),
        default=None if field.is_required() else field.default,
        doc=field.description or "",
    )


def _without_none(annotation: Any) -> Any:
    """`float | None` -> `float`."""
    if get_origin(annotation) is None:
        return annotation
    return next(a for a in get_args(annotation) if a is not type(None))
