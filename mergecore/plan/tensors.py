"""From the weights of the architecture to the output tensors: inputs, element types and parameters of each."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mergecore.checkpoint.architecture import LAYER, Architecture, Weight
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.config.parameters import ModelLevel, resolve
from mergecore.errors import MergeError, Problem
from mergecore.methods import Method
from mergecore.plan.plan import Input, OutputTensor
from mergecore.plan.slices import Slice, Source


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the output a weight is."""

    found: Slice
    layer: int | None = None
    """In the slice; None before and after the layers."""
    output_layer: int = 0

    @property
    def t(self) -> float:
        """Position in the slice, for gradients: 0 at its first layer, 1 at its last, 0 outside of layers."""
        if self.layer is None:
            return 0.0
        last = self.found.n_layers - 1
        return self.layer / last if last else 1.0

    def layer_in(self, source: Source) -> int | None:
        """The layer's number in the source's model."""
        return None if self.layer is None else source.start + self.layer


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
    problems: list[Problem] = field(default_factory=list)

    def tensors(self, slices: Sequence[Slice]) -> list[OutputTensor]:
        """All output tensors, in the order of the model. Those with a problem are left out."""
        planned = (self._tensor(weight, place) for weight, place in _places(self.architecture, slices))
        return [tensor for tensor in planned if tensor is not None]

    def _tensor(self, weight: Weight, place: Place) -> OutputTensor | None:
        """None where nothing is written: no model has the weight, or there is a problem with it."""
        if weight.optional and not self._is_in_a_model(weight, place):
            return None
        name = weight.name.replace(LAYER, str(place.output_layer))
        found = [(source, self._find(weight, place, source)) for source in place.found.sources]
        present = [(source, input_) for source, input_ in found if input_ is not None]
        missing = [source for source, input_ in found if input_ is None]
        if missing and not self._may_lack(name, weight, place, missing):
            return None
        inputs = [input_ for _, input_ in present]
        if not self._agree_in_shape(name, weight, inputs):
            return None
        if not all(input_.tensor.dtype.is_floating for input_ in inputs) or not inputs[0].tensor.n:
            return self._copied_if_equal(name, inputs)
        if missing and len(inputs) == 1 and self.method.missing == "keep_single":
            return self._copied_if_equal(name, inputs)
        return self._merged(name, place, present)

    def _is_in_a_model(self, weight: Weight, place: Place) -> bool:
        """Whether a model has the weight itself, not only one that it is tied to."""
        return any(
            next(weight.names(place.layer_in(source))) in self.models[source.model].tensors
            for source in place.found.sources
        )

    def _find(self, weight: Weight, place: Place, source: Source) -> Input | None:
        tensors = self.models[source.model].tensors
        for name in weight.names(place.layer_in(source)):
            if name in tensors:
                return Input(tensors[name], name, source.model)
        return None

    def _may_lack(self, name: str, weight: Weight, place: Place, missing: Sequence[Source]) -> bool:
        """Whether the weight can be merged without the models that lack it; if not, that is a problem."""
        base = place.found.base if self.method.base != "ignored" else None
        without_base = any(source.model == base for source in missing) and self.method.missing != "keep_single"
        if weight.optional and self.method.missing != "error" and not without_base:
            return True
        for source in missing:
            if weight.optional and without_base and source.model != base:
                continue
            lacking = next(weight.names(place.layer_in(source)))
            self._problem(
                str(self.models[source.model].folder),
                f"lacks the tensor `{lacking}`, which the output's `{name}` is made from",
                f"is this whole model a {self.architecture.architectures[0]}?",
            )
        return False

    def _agree_in_shape(self, name: str, weight: Weight, inputs: Sequence[Input]) -> bool:
        if len({input_.tensor.shape for input_ in inputs}) <= 1:
            return True
        shapes = ", ".join(f"{list(i.tensor.shape)} in {self.names[i.model]}" for i in inputs)
        hint = "models with different vocabularies can't be merged yet" if self._differ_in_words(weight, inputs) else ""
        self._problem(
            self.where, f"`{name}` has different shapes: {shapes}", hint or "all models must have the same sizes"
        )
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
            self._problem(self.where, f"`{name}` is not floating point in all models, so it can't be merged: {found}")
            return None
        return self._output(name, inputs)

    def _merged(self, name: str, place: Place, present: Sequence[tuple[Source, Input]]) -> OutputTensor | None:
        base = place.found.base if self.method.base != "ignored" else None
        inputs = [input_ for _, input_ in present]
        position = next((i for i, input_ in enumerate(inputs) if input_.model == base), None)
        levels = [
            ModelLevel(source.parameters, input_.tensor_name, input_.model == base, self.names[input_.model])
            for source, input_ in present
        ]
        try:
            params = resolve(
                self.method,
                shared_levels=place.found.levels,
                per_model=levels,
                target_name=name,
                t=place.t,
                where=place.found.where,
            )
            tensor = self._output(name, inputs)
            tensor = replace(tensor, method=self.method.name, params=params, base_index=position)
            if self.method.space == "deltas" and position is not None:
                tensor = _as_deltas(tensor, position)
            return replace(tensor, measured=_is_measured(self.method, tensor))
        except MergeError as error:
            self.problems += error.problems
            return None

    def _output(self, name: str, inputs: Sequence[Input]) -> OutputTensor:
        """A tensor that copies its inputs, which are equal; where it lies in the output is not known yet."""
        stored = promote(input_.tensor.dtype for input_ in inputs)
        floating = stored.is_floating
        return OutputTensor(
            name=name,
            shape=inputs[0].tensor.shape,
            dtype=(self.out_dtype or self.dtype or stored) if floating else stored,
            inputs=tuple(inputs),
            base=None,
            base_index=None,
            method=None,
            params=None,
            double=floating and Dtype.F64 in (self.dtype, stored),
            measured=False,
            shard=0,
            offset_bytes=0,
        )

    def _problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))


def _places(architecture: Architecture, slices: Sequence[Slice]) -> Iterator[tuple[Weight, Place]]:
    """All weights of the output. What is before the layers belongs to the first slice, what is after to the last."""
    for weight in architecture.before:
        yield weight, Place(slices[0])
    output_layer = 0
    for found in slices:
        for layer in range(found.n_layers):
            for weight in architecture.layer:
                yield weight, Place(found, layer, output_layer)
            output_layer += 1
    for weight in architecture.after:
        yield weight, Place(slices[-1])


def _as_deltas(tensor: OutputTensor, base: int) -> OutputTensor:
    """With the base apart from the inputs. The base alone is copied."""
    others = (*tensor.inputs[:base], *tensor.inputs[base + 1 :])
    if not others:
        return replace(tensor, method=None, params=None, base_index=None)
    return replace(tensor, inputs=others, base=tensor.inputs[base], base_index=None)


def _is_measured(method: Method, tensor: OutputTensor) -> bool:
    """Whether the recipe asks for a measurement. Raises what the recipe says of its parameters."""
    if tensor.method is None:
        return False
    recipe = method.recipe(tensor.params, tensor.target(seed=0))
    if not isinstance(recipe, Generator):
        return False
    return next(recipe, None) is not None
