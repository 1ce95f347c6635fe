"""The config as output slices, module by module: which layers of which models make which layers of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mergecore.checkpoint.architecture import DEFAULT_MODULE, Architecture, Module
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.location import HUB_NAME
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.schema import Config, ModelEntry, ModuleBlock, OutputSlice
from mergecore.config.setting import Conditional, Setting
from mergecore.errors import PlanError, Problem
from mergecore.methods import Method

Levels: TypeAlias = tuple[Mapping[str, Setting], ...]
"""Settings, from the most specific to the least."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model, and the layers of it that go into a slice."""

    model: int
    """Position in `referenced`."""
    start: int
    stop: int
    available: int
    """How many layers the model has."""
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the output. All sources have as many layers as the slice."""

    sources: tuple[Source, ...]
    base: int | None
    """Position in `referenced` of the base model, if there is one."""
    levels: Levels
    """Settings for all sources, from the most specific to the least."""
    where: str
    """Its place in the config."""
    label: str
    """Names it in messages, empty if there is only one."""

    @property
    def has_filters(self) -> bool:
        """Whether a setting looks at the names of tensors; else all of a layer get the same values."""
        levels = (*self.levels, *(source.parameters for source in self.sources))
        settings = (value for level in levels for value in level.values() if isinstance(value, tuple))
        return any(isinstance(entry, Conditional) for setting in settings for entry in setting)

    @property
    def n_layers(self) -> int:
        """Zero for a slice that is empty or runs backwards, as in mergekit."""
        return max(0, self.sources[0].stop - self.sources[0].start)


@dataclass(frozen=True, slots=True)
class Stack:
    """A module of the output, and the slices that its layers are made of."""

    module: Module
    slices: tuple[Slice, ...]

    @property
    def n_layers(self) -> int:
        """Of the output."""
        return sum(found.n_layers for found in self.slices) if self.module.prefixes else 0


def referenced(config: Config) -> dict[ModelReference, str]:
    """All models of a config, in its order, each with the place where it is first named."""
    found: dict[ModelReference, str] = {}
    for block, path in _blocks(config):
        for i, entry in enumerate(block.models):
            found.setdefault(entry.model, config.where(*path, "models", i, "model"))
        for i, output in enumerate(block.slices):
            for j, source in enumerate(output.sources):
                found.setdefault(source.model, config.where(*path, "slices", i, "sources", j, "model"))
            if output.base_model is not None:
                found.setdefault(output.base_model, config.where(*path, "slices", i, "base_model"))
    if config.base_model is not None:
        found.setdefault(config.base_model, config.where("base_model"))
    return found


def _blocks(config: Config) -> Iterator[tuple[Config | ModuleBlock, tuple[str, ...]]]:
    """All that may have `models` or `slices`, with its place in the config."""
    yield config, ()
    for name, block in config.modules.items():
        yield block, ("modules", name)


def stacks_of(config: Config, architecture: Architecture, models: Mapping[ModelReference, Checkpoint]) -> list[Stack]:
    """The config's slices for each module that is written. `models:` at the top level stands for all modules.

    Raises PlanError if the config names a module that there isn't, or has slices for several modules in one.
    """
    slicer = _Slicer(config, models)
    if config.modules:
        _check_module_names(config, architecture)
        return [
            Stack(module, slicer.slices(config.modules[module.name], module, ("modules", module.name)))
            for module in architecture.modules
            if module.name in config.modules
        ]
    if config.slices:
        _check_that_slices_are_plain(config, architecture)
    return [Stack(module, slicer.slices(config, module, ())) for module in architecture.modules]


def _check_module_names(config: Config, architecture: Architecture) -> None:
    known = [module.name for module in architecture.modules]
    PlanError.raise_if_any(
        Problem(
            config.where("modules", name),
            f"a {architecture.name} has no module `{name}`",
            f"its modules are: {', '.join(known)}",
        )
        for name in config.modules
        if name not in known
    )


def _check_that_slices_are_plain(config: Config, architecture: Architecture) -> None:
    """Layer numbers must be of one module."""
    with_layers = [module.name for module in architecture.modules if module.prefixes]
    if not with_layers:
        raise PlanError.at(config.where("slices"), f"a {architecture.name} has no layers to slice", "write `models`")
    if len(with_layers) > 1:
        raise PlanError.at(
            config.where("slices"),
            f"several modules of a {architecture.name} have layers: {', '.join(with_layers)}",
            "write the `slices` of each under `modules`",
        )


@dataclass(frozen=True, slots=True)
class _Slicer:
    """Makes the slices of one module after the other."""

    config: Config
    models: Mapping[ModelReference, Checkpoint]

    def slices(self, block: Config | ModuleBlock, module: Module, path: tuple[str, ...]) -> tuple[Slice, ...]:
        """Of `models:` one slice of all layers, to which the base is added if it isn't there."""
        levels = (self.config.parameters,) if block is self.config else (block.parameters, self.config.parameters)
        if block.models:
            return (self._of_models(block.models, module, levels, path),)
        return tuple(self._slice(output, module, levels, (*path, "slices", i)) for i, output in enumerate(block.slices))

    def _of_models(self, entries: Sequence[ModelEntry], module: Module, levels: Levels, path: tuple[str, ...]) -> Slice:
        own = [(entry.model, entry.parameters) for entry in entries]
        base = self.config.base_model
        if base is not None and base not in [model for model, _ in own]:
            own.append((base, {}))
        counts = [module.layers_of(self.models[model]) for model, _ in own]
        sources = (
            Source(self._position(model), 0, count, count, parameters)
            for (model, parameters), count in zip(own, counts, strict=True)
        )
        where = self.config.where(*path, "models")
        return Slice(tuple(sources), self._base(None), levels, where, _label(module, None))

    def _slice(self, output: OutputSlice, module: Module, levels: Levels, path: tuple[str | int, ...]) -> Slice:
        sources = (
            Source(self._position(s.model), *s.layer_range, module.layers_of(self.models[s.model]), s.parameters)
            for s in output.sources
        )
        index = path[-1] if len(self.config.slices) > 1 or len(path) > 2 else None
        return Slice(
            sources=tuple(sources),
            base=self._base(output.base_model),
            levels=(output.parameters, *levels),
            where=self.config.where(*path),
            label=_label(module, index),
        )

    def _base(self, own: ModelReference | None) -> int | None:
        base = own or self.config.base_model
        return None if base is None else self._position(base)

    def _position(self, model: ModelReference) -> int:
        return list(self.models).index(model)


def _label(module: Module, index: int | str | None) -> str:
    label = "" if index is None else f" in slice {int(index) + 1}"
    return label if module.name == DEFAULT_MODULE else f"{label} of {module.name}" if label else f" in {module.name}"


def stack_problems(method: Method, stack: Stack, names: Sequence[str]) -> Iterator[Problem]:
    """What the slices of a module ask for that their method or their models can't give."""
    for found in stack.slices:
        yield from _input_problems(method, found, names)
        if stack.module.prefixes:
            yield from _range_problems(found, names)


def _second_reference(name: str) -> str:
    """How to name the same model once more: a local one by any revision, one on the Hub by its default one."""
    reference = ModelReference.parse(name)
    revision = "main" if HUB_NAME.fullmatch(reference.path) else "2"
    if reference.revision not in (None, revision):
        return ""
    other = replace(reference, revision=revision if reference.revision is None else None)
    return f"if that is meant, write the second one as {other}"


def _input_problems(method: Method, found: Slice, names: Sequence[str]) -> Iterator[Problem]:
    inputs = [source.model for source in found.sources]
    for model in sorted({m for m in inputs if inputs.count(m) > 1}):
        yield Problem(
            found.where,
            f"the model {names[model]} is there twice{found.label}",
            _second_reference(names[model]),
        )
    yield from _base_problems(method, found, names)
    fewest, most = method.models
    beside = ""
    if not method.base_counts and found.base in inputs:
        inputs.remove(found.base)
        beside = " beside the base"
    if len(inputs) < fewest or (most is not None and len(inputs) > most):
        count = f"{fewest}" if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
        yield Problem(
            found.where,
            f"`{method.name}` takes {count} model{'s' if count != '1' else ''}{beside}, found "
            f"{len(inputs)}{found.label}: {', '.join(names[m] for m in inputs)}",
            f"see `mergecore methods {method.name}`",
        )


def _base_problems(method: Method, found: Slice, names: Sequence[str]) -> Iterator[Problem]:
    if method.base == "ignored":
        return
    if found.base is None:
        if method.base == "required":
            yield Problem(
                found.where, f"`{method.name}` needs a `base_model`{found.label}", "name one at the top level"
            )
    elif found.base not in [source.model for source in found.sources]:
        yield Problem(
            found.where,
            f"the base model {names[found.base]} is not a source{found.label}",
            "list it among the sources, with a layer_range",
        )


def _range_problems(found: Slice, names: Sequence[str]) -> Iterator[Problem]:
    lengths = {source.stop - source.start for source in found.sources}
    if len(lengths) > 1:
        ranges = ", ".join(f"{names[s.model]} [{s.start}, {s.stop}]" for s in found.sources)
        yield Problem(found.where, f"the sources{found.label} differ in their number of layers: {ranges}")
    for source in found.sources:
        count = source.available
        if source.start < 0 or (source.stop > count and source.stop > source.start):
            yield Problem(
                found.where,
                f"layer_range [{source.start}, {source.stop}] of {names[source.model]}{found.label} is beyond the "
                f"model, which has {count} layers",
                f"the last possible range ends with {count}; the end is not part of the range",
            )
