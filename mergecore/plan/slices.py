"""The config as output slices: which layers of which models make which layers of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergecore.checkpoint.architecture import Architecture
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.config.schema import Config
from mergecore.config.setting import Setting
from mergecore.errors import Problem
from mergecore.methods import Method


@dataclass(frozen=True, slots=True)
class Source:
    """A model, and the layers of it that go into a slice."""

    model: int
    """Position in `referenced`."""
    start: int
    stop: int
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the output. All sources have as many layers as the slice."""

    sources: tuple[Source, ...]
    base: int | None
    """Position in `referenced` of the base model, if there is one."""
    levels: tuple[Mapping[str, Setting], ...]
    """Settings for all sources, from the most specific to the least."""
    where: str
    """Its place in the config."""
    label: str
    """Names it in messages, empty if there is only one."""

    @property
    def n_layers(self) -> int:
        """Zero for a slice that is empty or runs backwards, as in mergekit."""
        return max(0, self.sources[0].stop - self.sources[0].start)


def referenced(config: Config) -> dict[ModelReference, str]:
    """All models of a config, in its order, each with the place where it is first named."""
    found: dict[ModelReference, str] = {}
    for i, entry in enumerate(config.models):
        found.setdefault(entry.model, config.where("models", i, "model"))
    for i, output in enumerate(config.slices):
        for j, source in enumerate(output.sources):
            found.setdefault(source.model, config.where("slices", i, "sources", j, "model"))
        if output.base_model is not None:
            found.setdefault(output.base_model, config.where("slices", i, "base_model"))
    if config.base_model is not None:
        found.setdefault(config.base_model, config.where("base_model"))
    return found


def slices_of(config: Config, architecture: Architecture, models: Mapping[ModelReference, Checkpoint]) -> list[Slice]:
    """The config's slices. `models:` is one slice of all layers, to which the base is added if it isn't there."""
    position = {reference: i for i, reference in enumerate(models)}
    if config.models:
        return [_slice_of_models(config, architecture, models, position)]
    return [_slice(config, i, position) for i in range(len(config.slices))]


def _slice_of_models(
    config: Config,
    architecture: Architecture,
    models: Mapping[ModelReference, Checkpoint],
    position: Mapping[ModelReference, int],
) -> Slice:
    entries: list[tuple[ModelReference, Mapping[str, Setting]]] = [(e.model, e.parameters) for e in config.models]
    if config.base_model is not None and config.base_model not in [e.model for e in config.models]:
        entries.append((config.base_model, {}))
    sources = tuple(
        Source(position[model], 0, architecture.layers_of(models[model]), parameters) for model, parameters in entries
    )
    base = None if config.base_model is None else position[config.base_model]
    return Slice(sources, base, (config.parameters,), config.where("models"), "")


def _slice(config: Config, index: int, position: Mapping[ModelReference, int]) -> Slice:
    output = config.slices[index]
    base = output.base_model or config.base_model
    return Slice(
        sources=tuple(Source(position[s.model], *s.layer_range, s.parameters) for s in output.sources),
        base=None if base is None else position[base],
        levels=(output.parameters, config.parameters),
        where=config.where("slices", index),
        label=f" in slice {index + 1}" if len(config.slices) > 1 else "",
    )


def slice_problems(
    method: Method, found: Slice, names: Sequence[str], layer_counts: Sequence[int]
) -> Iterator[Problem]:
    """What a slice asks for that its method or its models can't give."""
    yield from _input_problems(method, found, names)
    yield from _range_problems(found, names, layer_counts)


def _input_problems(method: Method, found: Slice, names: Sequence[str]) -> Iterator[Problem]:
    inputs = [source.model for source in found.sources]
    for model in sorted({m for m in inputs if inputs.count(m) > 1}):
        yield Problem(
            found.where,
            f"the model {names[model]} is there twice{found.label}",
            f"if that is meant, write the second one as {names[model]}@2",
        )
    yield from _base_problems(method, found, names)
    fewest, most = method.models
    if len(inputs) < fewest or (most is not None and len(inputs) > most):
        count = f"{fewest}" if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
        yield Problem(
            found.where,
            f"`{method.name}` takes {count} model{'s' if count != '1' else ''}, found {len(inputs)}{found.label}: "
            f"{', '.join(names[m] for m in inputs)}",
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


def _range_problems(found: Slice, names: Sequence[str], layer_counts: Sequence[int]) -> Iterator[Problem]:
    lengths = {source.stop - source.start for source in found.sources}
    if len(lengths) > 1:
        ranges = ", ".join(f"{names[s.model]} [{s.start}, {s.stop}]" for s in found.sources)
        yield Problem(found.where, f"the sources{found.label} differ in their number of layers: {ranges}")
    for source in found.sources:
        count = layer_counts[source.model]
        if source.start < 0 or (source.stop > count and source.stop > source.start):
            yield Problem(
                found.where,
                f"layer_range [{source.start}, {source.stop}] of {names[source.model]}{found.label} is beyond the "
                f"model, which has {count} layers",
                f"the last possible range ends with {count}; the end is not part of the range",
            )
