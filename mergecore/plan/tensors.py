"""From the weights of the architecture to the output tensors: inputs, element types and parameters of each."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from mergecore.checkpoint.architecture import Architecture, Module, Weight
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.checkpoint.recognition import RAW
from mergecore.config.parameters import ModelLevel, resolve
from mergecore.errors import MergeError, PlanError, Problem
from mergecore.methods import Method, Params
from mergecore.methods.plugins import blamed
from mergecore.plan.embeddings import Embeddings
from mergecore.plan.plan import Input, OutputTensor
from mergecore.plan.slices import Slice, Source, Stack

_LACKING_HINT = "--tensors common leaves such tensors out, --tensors any merges them from the models that have them"

_VOCABULARY_HINT = (
    "add `tokenizer: {source: union}` to merge the vocabularies; --unsafe-truncate-embeddings keeps the rows that all "
    "have, whatever tokens they are"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the output a weight is."""

    module: Module
    found: Slice
    output_number: int
    """In names of the output: the layer's, or the one after the last."""
    layer: int | None = None
    """In the slice; None before and after the layers."""

    @property
    def t(self) -> float:
        """Position in the slice, for gradients: 0 at its first layer, 1 at its last, 0 outside of layers."""
        if self.layer is None:
            return 0.0
        last = self.found.n_layers - 1
        return self.layer / last if last else 1.0

    def number_in(self, source: Source) -> int:
        """In names of the source's model."""
        return self.module.first_layer + (source.available if self.layer is None else source.start + self.layer)


@dataclass(slots=True)
class TensorPlanner:
    """Makes the output tensors of a merge, and collects all that is wrong with them in `problems`."""

    method: Method
    architecture: Architecture
    models: Sequence[Checkpoint]
    names: Sequence[str]
    """Of the models, as in the config."""
    dtype: Dtype | None
    """`dtype` of the config."""
    out_dtype: Dtype | None
    where: str
    """The config, for messages."""
    embeddings: Embeddings
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    """Each with the name of the output tensor that it is about."""
    _unfiltered: dict[tuple[float, ...], Params] = field(default_factory=dict)
    """By slice, position in it and models, the parameters that don't depend on a tensor's name."""
    left_as_base: list[str] = field(default_factory=list)
    """Tensors that too few models have, so that the base's are copied."""

    def tensors(self, stacks: Sequence[Stack]) -> list[OutputTensor]:
        """All output tensors, in the order of the model. Those with a problem are left out."""
        planned = (
            self._tensor(weight, place)
            for stack in stacks
            for weights, place in _places(stack)
            for weight in self._written(weights, place)
        )
        return [tensor for tensor in planned if tensor is not None]

    def _written(self, weights: Sequence[Weight], place: Place) -> Iterator[Weight]:
        """Those that are required, or that a model has. Where one has some of a group, all of it is required."""
        found = [weight for weight in weights if not weight.optional or self._is_in_a_model(weight, place)]
        groups = {weight.group for weight in found} - {None}
        if not groups:
            yield from found
            return
        names = {weight.name for weight in found}
        for weight in weights:
            if weight.group in groups:
                yield _required(weight)
            elif weight.name in names:
                yield weight

    def _tensor(self, weight: Weight, place: Place) -> OutputTensor | None:
        """None where there is a problem with it."""
        name = next(weight.own_names(place.output_number))
        found = [(source, self._find(weight, place, source)) for source in place.found.sources]
        present = [(source, input_) for source, input_ in found if input_ is not None]
        missing = [source for source, input_ in found if input_ is None]
        if missing and not self._may_lack(name, weight, place, missing):
            return None
        try:
            inputs = self.embeddings.aligned(name, place.module, weight, [input_ for _, input_ in present])
        except PlanError as error:
            self.problems += [(name, problem) for problem in error.problems]
            return None
        present = [(source, input_) for (source, _), input_ in zip(present, inputs, strict=True)]
        if not self._agree_in_shape(name, weight, inputs):
            return None
        if not all(input_.tensor.dtype.is_floating for input_ in inputs) or not inputs[0].tensor.n:
            return self._copied_if_equal(name, inputs)
        if missing and len(inputs) == 1 and self.method.missing == "keep_single":
            return self._copied_if_equal(name, inputs)
        if missing and len(inputs) < self.method.models[0] and self.method.missing == "keep_base":
            self.left_as_base.append(name)
            return self._copied_if_equal(name, [input_ for input_ in inputs if input_.model == place.found.base])
        return self._merged(name, weight, place, present)

    def _is_in_a_model(self, weight: Weight, place: Place) -> bool:
        """Whether a model has the weight itself, not only one that it is tied to."""
        return any(
            name in self.models[source.model].tensors
            for source in place.found.sources
            for name in weight.own_names(place.number_in(source))
        )

    def _find(self, weight: Weight, place: Place, source: Source) -> Input | None:
        model = self.models[source.model]
        for name in weight.names(place.number_in(source)):
            if name in model.tensors:
                return Input(model.tensors[name], name, source.model, model.updates.get(name))
        return None

    def _may_lack(self, name: str, weight: Weight, place: Place, missing: Sequence[Source]) -> bool:
        """Whether the weight can be merged without the models that lack it; if not, that is a problem."""
        base = place.found.base if self.method.base != "ignored" else None
        without_base = any(source.model == base for source in missing)
        if self.method.missing == "keep_single":
            may_lack = len(missing) == len(place.found.sources) - 1
        else:
            may_lack = self.method.missing != "error" and not without_base
        if weight.optional and may_lack:
            return True
        for source in missing:
            if weight.optional and without_base and source.model != base:
                continue
            lacking = next(weight.names(place.number_in(source)))
            self._problem(
                name,
                str(self.models[source.model].folder),
                f"lacks the tensor `{lacking}`, which the output's `{name}` is made from",
                _LACKING_HINT if self.architecture.name == RAW else f"is this whole model a {self.architecture.name}?",
            )
        return False

    def _agree_in_shape(self, name: str, weight: Weight, inputs: Sequence[Input]) -> bool:
        if len({input_.tensor.shape for input_ in inputs}) <= 1:
            return True
        shapes = ", ".join(f"{list(i.tensor.shape)} in {self.names[i.model]}" for i in inputs)
        hint = _VOCABULARY_HINT if self._differ_in_words(weight, inputs) else "all models must have the same sizes"
        self._problem(name, self.where, f"`{name}` has different shapes: {shapes}", hint)
        return False

    def _differ_in_words(self, weight: Weight, inputs: Sequence[Input]) -> bool:
        """Whether the shapes would be equal but for the number of tokens."""
        axis = weight.vocabulary_axis
        if axis is None:
            return False
        return len({(*i.tensor.shape[:axis], *i.tensor.shape[axis + 1 :]) for i in inputs}) == 1

    def _copied_if_equal(self, name: str, inputs: Sequence[Input]) -> OutputTensor | None:
        """Integers aren't merged: the inputs must be equal, and one is copied. So are tensors without an element."""
        dtypes = {input_.tensor.dtype for input_ in inputs}
        if len(dtypes) > 1 and not all(dtype.is_floating for dtype in dtypes):
            found = ", ".join(f"{i.tensor.dtype.value} in {self.names[i.model]}" for i in inputs)
            what = f"`{name}` is not floating point in all models, so it can't be merged: {found}"
            self._problem(name, self.where, what)
            return None
        return self._output(name, inputs)

    def _merged(
        self, name: str, weight: Weight, place: Place, present: Sequence[tuple[Source, Input]]
    ) -> OutputTensor | None:
        base = place.found.base if self.method.base != "ignored" else None
        inputs = [input_ for _, input_ in present]
        position = next((i for i, input_ in enumerate(inputs) if input_.model == base), None)
        try:
            params = self._params(name, weight, place, present, base)
            tensor = self._output(name, inputs, self.method.name, params, position)
            return replace(tensor, measured=True) if _is_measured(self.method, tensor) else tensor
        except MergeError as error:
            self.problems += [(name, problem) for problem in error.problems]
            return None

    def _params(
        self, name: str, weight: Weight, place: Place, present: Sequence[tuple[Source, Input]], base: int | None
    ) -> Params:
        """The method's parameters at a tensor. Without filters all tensors of a layer have the same."""
        key = (id(place.found), place.t, *(input_.model for _, input_ in present))
        if key in self._unfiltered:
            return self._unfiltered[key]
        # Filters see the weight's own name, also where a model has it under another one or uses one that it is tied to.
        in_models = (next(weight.names(place.number_in(source))) for source, _ in present)
        levels = [
            ModelLevel(source.parameters, tensor_name, input_.model == base, self.names[input_.model])
            for tensor_name, (source, input_) in zip(in_models, present, strict=True)
        ]
        params = resolve(
            self.method,
            shared_levels=place.found.levels,
            per_model=levels,
            target_name=name,
            t=place.t,
            where=place.found.where,
        )
        if not place.found.has_filters:
            self._unfiltered[key] = params
        return params

    def _output(
        self,
        name: str,
        inputs: Sequence[Input],
        method: str | None = None,
        params: Params | None = None,
        base_index: int | None = None,
    ) -> OutputTensor:
        """A tensor of which it isn't known yet where in the output it lies. Without a method it copies its inputs."""
        stored = promote(input_.dtype for input_ in inputs)
        floating = stored.is_floating
        base = None
        if method is not None and self.method.space == "deltas" and base_index is not None:
            if len(inputs) == 1:
                return self._output(name, inputs)  # the base alone
            base = inputs[base_index]
            inputs = [*inputs[:base_index], *inputs[base_index + 1 :]]
            base_index = None
        return OutputTensor(
            name=name,
            shape=inputs[0].tensor.shape,
            dtype=(self.out_dtype or self.dtype or stored) if floating else stored,
            inputs=tuple(inputs),
            base=base,
            base_index=base_index,
            method=method,
            params=params,
            double=floating and Dtype.F64 in (self.dtype, stored),
            measured=False,
            shard=0,
            offset_bytes=0,
        )

    def _problem(self, name: str, where: str, what: str, hint: str = "") -> None:
        self.problems.append((name, Problem(where, what, hint)))


@cache
def _required(weight: Weight) -> Weight:
    """The same object for every layer: there may be tens of thousands of experts."""
    return replace(weight, optional=False)


def _places(stack: Stack) -> Iterator[tuple[Sequence[Weight], Place]]:
    """All weights of a module. What is before the layers belongs to the first slice, what is after to the last."""
    module, slices = stack.module, stack.slices
    number = module.first_layer
    yield module.before, Place(module, slices[0], number)
    if module.prefixes:
        for found in slices:
            for layer in range(found.n_layers):
                yield module.layer, Place(module, found, number, layer)
                number += 1
    yield module.after, Place(module, slices[-1], number)


def _is_measured(method: Method, tensor: OutputTensor) -> bool:
    """Whether the recipe asks for a measurement. Raises what the recipe says of its parameters."""
    if tensor.method is None:
        return False
    with blamed(method, tensor.name, PlanError):
        recipe = method.recipe(tensor.params, tensor.target(seed=0))
        return isinstance(recipe, Generator) and next(recipe, None) is not None
