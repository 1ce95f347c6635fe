"""What a merge method is: parameters, the inputs it takes, and a recipe."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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
    shape: tuple[int, ...] = ()
    survey: Any = None
    """What the method's survey found; None while the merge is planned, and for methods without one."""

    @property
    def columns(self) -> int:
        """Elements of a row, which is a run along the last axis."""
        return self.shape[-1] if self.shape else 1

    def random_keys(self, use: str) -> tuple[Key, ...]:
        """[M] streams of random numbers, one per input, that the seed decides."""
        return tuple(Key.of(use, self.seed, self.name, model) for model in self.models)

    def fixed_keys(self, use: str) -> tuple[Key, ...]:
        """[M] streams of random numbers, one per input, that are the same in every run."""
        return tuple(Key.of(use, 0, self.name, model) for model in self.models)


Recipe: TypeAlias = Generator[Measure, Any, Combine]
"""Yields the measurements it needs, is sent their results, returns the combination."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all tensors of a merge."""

    question: Callable[[Any, Target], Measure | None]
    """What to measure at a tensor, from its parameters; None: nothing there."""
    add: Callable[[Target, Any], None]
    """Is called with the answers, in any order; a large tensor's come in parts."""


Survey: TypeAlias = Generator[Pass, None, Any]
"""Looks at all tensors before the first one is merged. What it returns is `Target.survey` of each: plain JSON data, so
that a run that was interrupted needn't look again."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method. Made by the decorator `method`."""

    name: str
    recipe: Callable[[Any, Target], Recipe | Combine]
    params: type[Params]
    paper: str
    """Title or authors with year and link, or where the method is known from."""
    space: Literal["weights", "deltas"]
    """What is combined: the models' weights, or their differences from the base. Without a base, which may be optional,
    the weights are the deltas.
    """
    base: Literal["required", "optional", "ignored"]
    """Whether a base model is needed. Where it is ignored, a configured base is an ordinary input."""
    models: tuple[int, int | None]
    """Fewest and most inputs."""
    base_counts: bool
    """Whether the base is counted among these inputs."""
    measures: str | None
    """What is measured before the tensors are combined; None: nothing, the inputs are read once."""
    missing: Literal["merge", "keep_single", "keep_base", "error"]
    """An optional tensor that some inputs lack: merge those that have it; or copy it if only one has it; or copy the
    base's if too few have it; or fail. Where it fits none of these, the merge fails too.
    """
    random: bool
    """Whether the result depends on the seed."""
    whole_rows: bool
    """Whether the combination needs whole rows of a tensor in memory."""
    survey: Callable[[Sequence[tuple[Any, Target]]], Survey] | None
    """For methods that have to know something of the whole model: from the parameters and targets of its tensors."""
    example: Params
    assembles: bool = False
    """Whether it is for configs of another grammar, with `experts` in the place of models, and not to be chosen by its
    name.
    """

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
    if get_origin(annotation) in (None, Literal):
        return annotation
    return next(a for a in get_args(annotation) if a is not type(None))
