"""Which tensors a model has: its architecture, as data.

`definitions` reads the known architectures from JSON, `inference` makes one up from the tensors of an unknown model,
and `recognition` decides which of the two a model gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.errors import CheckpointError

LAYER = "{layer}"
"""Stands for the layer's number in a name of a layer's tensor."""
AFTER = "{after}"
"""Stands for the number that follows the last layer's, in a name of a tensor after the layers."""
DEFAULT_MODULE = "default"
"""The name of the only module, and of one for tensors that belong to no other."""
EXPERT = "{expert}"
"""Stands for the expert's number in a name of an expert's tensor."""
MOST_PARTS = 10_000
"""Layers of a model, or experts of a layer. A number in a damaged or malicious file could keep us busy for ever."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor, or one of every layer where the name holds `{layer}`.

    Methods are told the number in the name; with None a name that holds one stays a template.
    """

    name: str
    """As the output has it."""
    optional: bool = False
    """Whether a model may lack it."""
    group: int | None = None
    """Optional weights of one group occur together or not at all, and in all models or in none."""
    aliases: tuple[str, ...] = ()
    """Other names that the tensor goes by on disk."""
    tied_to: tuple[str, ...] = ()
    """Tensors that a model which lacks this one uses in its place."""
    vocabulary_axis: int | None = None
    """The axis that has one entry per token, if there is one."""

    def own_names(self, number: int | None) -> Iterator[str]:
        """The names that the tensor itself may have, in the order of preference: the output has the first."""
        return (_numbered(template, number) for template in (self.name, *self.aliases))

    def names(self, number: int | None) -> Iterator[str]:
        """The names to look for, in this order."""
        yield from self.own_names(number)
        for template in self.tied_to:
            yield _numbered(template, number)


def _numbered(template: str, number: int | None) -> str:
    return template if number is None else template.replace(LAYER, str(number)).replace(AFTER, str(number))


@dataclass(frozen=True, slots=True)
class Module:
    """A part of a model with layers of its own, such as its encoder: before the layers, in each layer, after them."""

    name: str
    before: tuple[Weight, ...] = ()
    layer: tuple[Weight, ...] = ()
    after: tuple[Weight, ...] = ()
    prefixes: tuple[str, ...] = ()
    """How the names of a layer's tensors begin, up to `{layer}.`: on output, and in other layouts. Empty: no layers."""
    first_layer: int = 0
    """The number that names have for the first layer."""
    layer_count: tuple[str, ...] = ()
    """Keys of config.json that may say how many layers there are; `text_config.n_layer` is inside of `text_config`."""
    expert_count: tuple[str, ...] = ()
    """Keys of config.json that may say how many experts a layer has."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self.before + self.layer + self.after

    def layers_of(self, model: Checkpoint) -> int:
        """How many layers of this module a model has: what its config says, or else its tensors."""
        if not self.prefixes:
            return 0
        count = _count_in(model, self.layer_count)
        if count is not None:
            return count
        others = self.first_layer + any(AFTER in weight.name for weight in self.after)
        return max(_count_by_names(model, map(re.escape, self._starts())) - others, 0)

    def loose_names(self, weight: Weight, model: Checkpoint) -> Iterator[str]:
        """The names to look for of a tensor before or after a model's layers."""
        return weight.names(self.first_layer + self.layers_of(model))

    def experts_of(self, model: Checkpoint) -> int:
        """How many experts a layer has at most: what the model's config says, or else its tensors."""
        starts = {re.escape(w.name.partition(EXPERT)[0]).replace(r"\{layer\}", r"\d+") for w in self._of_experts()}
        if not starts:
            return 0
        count = _count_in(model, self.expert_count)
        return _count_by_names(model, starts) if count is None else count

    def with_experts(self, count: int) -> Module:
        """With one weight for every expert."""
        layer: list[Weight] = []
        for of_expert, run in groupby(self.layer, key=lambda weight: EXPERT in weight.name):
            weights = list(run)
            layer += [_of_expert(w, i) for i in range(count) for w in weights] if of_expert else weights
        return replace(self, layer=tuple(layer))

    def names_in(self, n_layers: int) -> set[str]:
        """All names that tensors of a model with so many layers may have."""
        numbers = range(self.first_layer, self.first_layer + n_layers)
        loose = {name for weight in self.before + self.after for name in weight.names(numbers.stop)}
        return loose | {name for i in numbers for weight in self.layer for name in weight.names(i)}

    def template(self, name: str, n_layers: int) -> str | None:
        """A tensor's name with `{layer}` for the number of its layer; None if it is in none of the layers."""
        for start in self._starts():
            number, point, rest = name.removeprefix(start).partition(".")
            if not name.startswith(start) or not point or not number.isdecimal():
                continue
            if self.first_layer <= int(number) < self.first_layer + n_layers:
                return f"{start}{LAYER}.{rest}"
        return None

    def _starts(self) -> list[str]:
        return [prefix.partition(LAYER)[0] for prefix in self.prefixes]

    def _of_experts(self) -> Iterator[Weight]:
        return (weight for weight in self.layer if EXPERT in weight.name)


@dataclass(frozen=True, slots=True)
class Stacking:
    """A tensor of a layout in which the experts of a layer are stacked, and what it is made of in one where they aren't
    (`expert_layout`). Names are without what comes before the layer's block.
    """

    name: str
    parts: tuple[str, ...]
    """With `{expert}`, or a single one without it that only has another name."""

    @property
    def of_experts(self) -> bool:
        return EXPERT in self.parts[0]


USUAL_STACKINGS = (
    Stacking("experts.gate_up_proj", ("experts.{expert}.gate_proj.weight", "experts.{expert}.up_proj.weight")),
    Stacking("experts.down_proj", ("experts.{expert}.down_proj.weight",)),
)
"""What most mixtures of experts call these tensors."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """All tensors of a model, module by module. Two are equal if they come from the same definition."""

    name: str = field(compare=False)
    """As config.json has it in `architectures`."""
    definition: tuple[str, ...]
    """What tells architectures apart: name of the definition and the heads, or the structure that was inferred."""
    modules: tuple[Module, ...] = field(compare=False)
    files: tuple[str, ...] = field(default=(), compare=False)
    """Files beside the weights that belong to a model of this kind, if they are there."""
    vocabulary_size: tuple[str, ...] = field(default=("vocab_size",), compare=False)
    """Keys of config.json that may say how many tokens there are."""
    stackings: tuple[Stacking, ...] = field(default=USUAL_STACKINGS, compare=False)
    """How the experts of a layer are stacked, if they are; none where there is only one layout."""
    model_type: str = field(default="", compare=False)
    """As config.json has it; empty if this isn't a known definition."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user should know about it, a line each."""
    extra: tuple[str, ...] = field(default=(), compare=False)
    """Templates of tensors that the definition doesn't know but a model has (see `fitted`)."""

    def fitted(self, models: Sequence[Checkpoint]) -> Architecture:
        """With a weight for each expert that the models have, and optional ones for what the definition lacks."""
        modules = (module.with_experts(max(module.experts_of(m) for m in models)) for module in self.modules)
        return replace(self, modules=tuple(modules))._extended(models)

    def _extended(self, models: Iterable[Checkpoint]) -> Architecture:
        """With the tensors that the definition doesn't know but one of the models has, as optional ones."""
        found: dict[str, int] = {}  # template -> position of its module
        for names, counts in _distinct(self.modules, models):
            known: set[str] = set()
            for module, count in zip(self.modules, counts, strict=True):
                known |= module.names_in(count)
            for name in names:
                if name not in known:
                    template, position = self._home(name, counts)
                    found.setdefault(template, position)
        modules = (
            _with_optional(module, [template for template, at in found.items() if at == position])
            for position, module in enumerate(self.modules)
        )
        return replace(self, modules=tuple(modules), extra=tuple(found))

    def _home(self, name: str, counts: Sequence[int]) -> tuple[str, int]:
        """The template for an unknown tensor, and its module: that of its layer, or the one with the likest names."""
        for position, module in enumerate(self.modules):
            template = module.template(name, counts[position])
            if template is not None:
                return template, position
        likeness = [max((_n_alike(name, w.name) for w in module.weights), default=0) for module in self.modules]
        return name, likeness.index(max(likeness))


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value at `text_config.vocab_size` and the like; None if it isn't there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set what `look_up` finds."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[name] = value


def first_key(config: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of `keys` that has a value in `config`."""
    return next((key for key in keys if look_up(config, key) is not None), None)


def _count_in(model: Checkpoint, keys: Sequence[str]) -> int | None:
    """The number at the first of `keys` that the model's config has. Raises CheckpointError if it is none."""
    key = first_key(model.config, keys)
    if key is None:
        return None
    count = look_up(model.config, key)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_PARTS:
        raise CheckpointError.at(
            model.folder / CONFIG_FILE, f"`{key}` should be a number, found {count!r:.60}", f"from 0 to {MOST_PARTS}"
        )
    return count


def _count_by_names(model: Checkpoint, starts: Iterable[str]) -> int:
    """One more than the largest number behind one of the regular expressions `starts`. Raises CheckpointError."""
    numbered = re.compile(rf"(?:{'|'.join(starts)})(\d+)\.")
    count, name = max(((int(m[1]) + 1, m.string) for m in map(numbered.match, model.tensors) if m), default=(0, ""))
    if count > MOST_PARTS:
        raise CheckpointError.at(
            model.folder, f"has the tensor `{name}`, but only numbers below {MOST_PARTS} are known"
        )
    return count


def _n_alike(one: str, other: str) -> int:
    """How many characters two names have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _of_expert(weight: Weight, expert: int) -> Weight:
    number = str(expert)
    aliases = tuple(alias.replace(EXPERT, number) for alias in weight.aliases)
    return replace(weight, name=weight.name.replace(EXPERT, number), aliases=aliases)


def _with_optional(module: Module, templates: Iterable[str]) -> Module:
    weights = [Weight(name, optional=True) for name in templates]
    return replace(
        module,
        before=module.before + tuple(w for w in weights if LAYER not in w.name),
        layer=module.layer + tuple(w for w in weights if LAYER in w.name),
    )


def _distinct(
    modules: Sequence[Module], models: Iterable[Checkpoint]
) -> Iterator[tuple[Iterable[str], tuple[int, ...]]]:
    """Tensor names and layer counts of the models, without those that an earlier model has just so."""
    seen: list[tuple[Checkpoint, tuple[int, ...]]] = []
    for model in models:
        counts = tuple(module.layers_of(model) for module in modules)
        if not any(counts == c and model.tensors.keys() == m.tensors.keys() for m, c in seen):
            seen.append((model, counts))
            yield model.tensors, counts
