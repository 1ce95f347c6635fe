"""Which tensors a model of an architecture has. The definitions are data: one JSON file each in `architectures/`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.errors import CheckpointError, PlanError

LAYER = "{layer}"
"""Stands for the layer's number in a name of a layer's tensor."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor, or one of every layer where the name holds `{layer}`."""

    name: str
    optional: bool = False
    """Whether a model may lack it."""
    tied_to: tuple[str, ...] = ()
    """Tensors that a model which lacks this one uses in its place."""
    vocabulary_axis: int | None = None
    """The axis that has one entry per token, if there is one."""

    def names(self, layer: int | None) -> Iterator[str]:
        """The names to look for, in this order."""
        for template in (self.name, *self.tied_to):
            yield template if layer is None else template.replace(LAYER, str(layer))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The tensors of a model: before the layers, in each layer, after the layers."""

    architectures: tuple[str, ...]
    """The names in config.json's `architectures` that this definition is for."""
    layer_count: str
    """The key of config.json that says how many layers there are."""
    before: tuple[Weight, ...]
    layer: tuple[Weight, ...]
    after: tuple[Weight, ...]
    extra: tuple[str, ...] = field(default=(), compare=False)
    """Templates of tensors that the definition doesn't know but a model has (see `extended`)."""

    def layers_of(self, model: Checkpoint) -> int:
        """How many layers a model has."""
        count = model.config.get(self.layer_count)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise CheckpointError.at(
                model.folder / CONFIG_FILE, f"`{self.layer_count}` should be a number of layers, found {count!r}"
            )
        return count

    def extended(self, models: Iterable[Checkpoint]) -> Architecture:
        """With the tensors that the definition doesn't know but one of the models has, as optional ones."""
        unknown: dict[str, None] = {}
        for model in models:
            known = self._known_names(self.layers_of(model))
            layer_name = self._layer_pattern()
            for name in model.tensors:
                if name not in known:
                    match = layer_name.match(name)
                    in_layers = match is not None and int(match[2]) < self.layers_of(model)
                    unknown[layer_name.sub(rf"\1{LAYER}.", name, 1) if in_layers else name] = None
        weights = [Weight(name, optional=True) for name in unknown]
        return replace(
            self,
            before=self.before + tuple(w for w in weights if LAYER not in w.name),
            layer=self.layer + tuple(w for w in weights if LAYER in w.name),
            extra=tuple(unknown),
        )

    def _known_names(self, n_layers: int) -> set[str]:
        names = {name for weight in self.before + self.after for name in weight.names(None)}
        return names | {name for i in range(n_layers) for weight in self.layer for name in weight.names(i)}

    def _layer_pattern(self) -> re.Pattern[str]:
        """Matches the start of a layer's tensor name up to the number and its point."""
        prefix = self.layer[0].name.partition(LAYER)[0]
        return re.compile(rf"({re.escape(prefix)})(\d+)\.")


def recognize(model: Checkpoint) -> Architecture:
    """The definition for a model, by the one name in its config's `architectures`. Raises PlanError."""
    names = model.config.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        raise PlanError.at(model.folder / CONFIG_FILE, f"`architectures` should hold one name, found {names!r}")
    found = _definitions().get(names[0])
    if found is None:
        raise PlanError.at(
            model.folder / CONFIG_FILE,
            f"the architecture `{names[0]}` is not supported yet",
            f"supported are {', '.join(sorted(_definitions()))}",
        )
    return found


@cache
def _definitions() -> dict[str, Architecture]:
    folder = resources.files("mergecore.checkpoint") / "architectures"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    definitions = [_definition(file.read_text(encoding="utf-8")) for file in files]
    return {name: definition for definition in definitions for name in definition.architectures}


def _definition(text: str) -> Architecture:
    data = json.loads(text)
    before, layer, after = (tuple(_weight(**entry) for entry in data[part]) for part in ("before", "layer", "after"))
    return Architecture(tuple(data["architectures"]), data["layer_count"], before, layer, after)


def _weight(*, tied_to: Iterable[str] = (), **entry: object) -> Weight:
    return Weight(tied_to=tuple(tied_to), **entry)  # type: ignore[arg-type]
