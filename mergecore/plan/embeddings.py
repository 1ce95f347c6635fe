"""Tensors with a row for each token: in the output's vocabulary, or cut to the rows that all models have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mergecore.checkpoint.architecture import Architecture, Module, Weight, first_key, look_up
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.gathered_rows import MEAN, GatheredRows, Stored
from mergecore.checkpoint.recognition import is_raw, recognize
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.errors import PlanError
from mergecore.plan.plan import Input
from mergecore.tokenizer.vocabulary import Vocabulary


def vocabulary_tables(model: Checkpoint) -> list[str]:
    """The names of a model's tensors that are known to have a row for each token."""
    if is_raw(model):
        return []
    modules = recognize(model).modules
    weights = [(module, weight) for module in modules for weight in (*module.before, *module.after)]
    tables = [(module, weight) for module, weight in weights if weight.vocabulary_axis is not None]
    names = dict.fromkeys(name for module, weight in tables for name in module.loose_names(weight, model))
    return [name for name in names if name in model.tensors]


def vocabulary_sizes(architecture: Architecture, models: Iterable[Checkpoint], where: str) -> list[int]:
    """How many tokens each model has rows of: as its config says, or fewer where a tensor has fewer rows.

    Raises PlanError if no tensor is known to have rows of tokens.
    """
    modules = architecture.modules
    weights = [(module, w) for module in modules for w in module.weights if w.vocabulary_axis is not None]
    sizes = [_size(architecture, weights, model) for model in models]
    if 0 in sizes:
        what = f"none of the tensors of a {architecture.name} is known to have a row for each token"
        raise PlanError.at(where, f"the vocabularies can't be merged: {what}")
    return sizes


def _size(architecture: Architecture, weights: Iterable[tuple[Module, Weight]], model: Checkpoint) -> int:
    names = (_name_in(model, module, weight) for module, weight in weights)
    rows = [model.tensors[name].shape[0] for name in names if name is not None]
    said = look_up(model.config, first_key(model.config, architecture.vocabulary_size) or "")
    return min([*rows, *([said] if rows and isinstance(said, int) else [])], default=0)


def size_settings(architecture: Architecture, config: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """What config.json must say of so many rows."""
    keys = [key for key in architecture.vocabulary_size if look_up(config, key) is not None]
    return dict.fromkeys(keys or architecture.vocabulary_size[:1], n_rows)


@dataclass(slots=True)
class Embeddings:
    """Gives tensors with a row for each token the same rows in all models."""

    models: Sequence[Checkpoint]
    names: Sequence[str]
    where: str
    """The config, for messages."""
    vocabulary: Vocabulary | None
    truncate: bool
    """Without a vocabulary: whether rows that not all models have are left out."""
    notes: list[str] = field(default_factory=list)
    rows_left: int | None = None
    """To which the tensors were cut, if any was."""

    def aligned(self, name: str, module: Module, weight: Weight, inputs: Sequence[Input]) -> list[Input]:
        """The inputs of one tensor of a module, with the same number of rows if that can be. Raises PlanError."""
        if weight.vocabulary_axis is None or len({input_.tensor.shape[1:] for input_ in inputs}) > 1:
            return list(inputs)
        assert weight.vocabulary_axis == 0
        if self.vocabulary is not None:
            return [self._gathered(name, module, weight, input_, self.vocabulary) for input_ in inputs]
        return self._cut(name, inputs)

    def _gathered(self, name: str, module: Module, weight: Weight, input_: Input, vocabulary: Vocabulary) -> Input:
        rows = vocabulary.rows[input_.model]
        assert isinstance(input_.tensor, TensorRef)
        if rows.is_start_of(input_.model):
            return replace(input_, tensor=_first_rows(input_.tensor, rows.n))
        needed = [part for part in np.unique(rows.parts).tolist() if part != MEAN] or [input_.model]
        parts = [self._part(name, module, weight, model, input_) for model in needed]
        return replace(input_, tensor=GatheredRows.of(parts, rows.of_parts(needed)))

    def _part(self, name: str, module: Module, weight: Weight, model: int, input_: Input) -> TensorRef:
        """The tensor of a model whose rows are needed. Raises PlanError if they can't be had."""
        checkpoint = self.models[model]
        found = _name_in(checkpoint, module, weight)
        if found is None:
            what = f"needs rows of tokens that {self.names[input_.model]} lacks from {self.names[model]}"
            raise PlanError.at(self.where, f"`{name}` {what}, which has no such tensor")
        if found in checkpoint.updates:
            raise PlanError.at(
                self.where,
                f"`{found}` of {self.names[model]} is changed by a LoRA adapter, and gets other rows by `tokenizer`",
                "merge the adapter in a stage of its own before, with `merge_method: passthrough`",
            )
        part = checkpoint.tensors[found]
        assert isinstance(part, TensorRef)
        if part.shape[1:] != input_.tensor.shape[1:]:
            shapes = (
                f"{list(part.shape)} in {self.names[model]}, {list(input_.tensor.shape)} in {self.names[input_.model]}"
            )
            raise PlanError.at(self.where, f"`{name}` has rows of different lengths: {shapes}")
        return part

    def _cut(self, name: str, inputs: Sequence[Input]) -> list[Input]:
        counts = [input_.tensor.shape[0] for input_ in inputs]
        if not self.truncate or len(set(counts)) == 1:
            return list(inputs)
        self.rows_left = min(counts)
        cut = ", ".join(
            f"{count} in {self.names[input_.model]}"
            for input_, count in zip(inputs, counts, strict=True)
            if count > self.rows_left
        )
        self.notes.append(
            f"`{name}` is cut to its first {self.rows_left} rows, of {cut}; which tokens they are was not checked"
        )
        return [replace(input_, tensor=_first_rows(input_.tensor, self.rows_left)) for input_ in inputs]


def _name_in(model: Checkpoint, module: Module, weight: Weight) -> str | None:
    """The name that a model has for a tensor outside of the layers; None if it has no such tensor."""
    return next((name for name in module.loose_names(weight, model) if name in model.tensors), None)


def _first_rows(tensor: Stored, n: int) -> TensorRef:
    assert isinstance(tensor, TensorRef)
    return replace(tensor, shape=(n, *tensor.shape[1:]))
