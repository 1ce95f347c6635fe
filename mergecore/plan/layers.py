"""What config.json must say of the output's layers: how many there are, and what it tells of them one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergecore.checkpoint.architecture import first_key, look_up
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.plan.plan import ModuleLayers
from mergecore.plan.slices import Stack

_ONE_BY_ONE = re.compile(r"layer|block|pattern")
"""In the names of lists with an entry for each layer, such as `layer_types`."""
_NUMBERS = ("moe_layers", "mlp_only_layers", "full_attn_idxs", "attn_layer_indices")
"""Lists of the numbers of some layers."""
_THRESHOLDS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""The number of the first layer that is of another kind than those before it: sparse, or with a sliding window."""


def layers_of_output(
    stacks: Sequence[Stack], models: Sequence[Checkpoint], donor: int
) -> tuple[tuple[ModuleLayers, ...], list[str]]:
    """The layers of each module, and notes on what config.json can't say of them."""
    notes: list[str] = []
    found: list[ModuleLayers] = []
    for stack in stacks:
        restacking = _Restacking(stack, models, donor, notes)
        found.append(ModuleLayers(stack.module.name, stack.n_layers, restacking.settings()))
    return tuple(found), notes


@dataclass(frozen=True, slots=True)
class _Restacking:
    """One module's layers: where each comes from, and what the models' configs say of it."""

    stack: Stack
    models: Sequence[Checkpoint]
    donor: int
    notes: list[str]

    def settings(self) -> dict[str, Any]:
        """Key -> value for all that differs from the donor's config."""
        module, donor = self.stack.module, self.models[self.donor]
        if not module.prefixes:
            return {}
        count, n = module.layers_of(donor), self.stack.n_layers
        if self._origins() == [(self.donor, i) for i in range(count)]:
            return {}
        key = first_key(donor.config, module.layer_count) or next(iter(module.layer_count), None)
        if key is None:
            if n != count:
                self.notes.append(f"nothing in config.json is known to count the {n} layers of {module.name}: set it")
            return {}
        path = key.rpartition(".")[0]
        section = look_up(donor.config, path) if path else donor.config
        return {key: n, **dict(self._one_by_one(section or {}, f"{path}." if path else "", count))}

    def _origins(self) -> list[tuple[int, int]]:
        """Model and number of the layer that gives each layer of the output its settings: the first source's."""
        firsts = [(found.sources[0], found.n_layers) for found in self.stack.slices]
        return [(source.model, source.start + i) for source, n in firsts for i in range(n)]

    def _one_by_one(self, section: Mapping[str, Any], path: str, count: int) -> Iterator[tuple[str, Any]]:
        """What the section of the config says of single layers, for those of the output."""
        for name, value in section.items():
            key, of = path + name, _question(name, value, count)
            said = None if of is None else self._said(key, of)
            if said is None:
                continue
            if of is _is_below:
                self._check_threshold(key, said, section)
                yield key, sum(said)
            else:
                yield key, [i for i, there in enumerate(said) if there] if of is _is_listed else said

    def _said(self, key: str, of: Callable[[Any, int], Any]) -> list[Any] | None:
        """`of(value of the key, number of the layer)` for each layer, from the config of the model it comes from.

        A model whose config lacks the key is taken to be like the donor. None, with a note, if one can't tell.
        """
        donor = look_up(self.models[self.donor].config, key)
        said: list[Any] = []
        for model, layer in self._origins():
            own = look_up(self.models[model].config, key)
            said.append(of(donor if own is None else own, layer))
            if said[-1] is None:
                folder = self.models[model].folder
                self.notes.append(
                    f"`{key}` in config.json is the donor's: {folder} doesn't say it of its layer {layer}"
                )
                return None
        return said

    def _check_threshold(self, key: str, first_kind: Sequence[bool], section: Mapping[str, Any]) -> None:
        """What a model has below its threshold must come first, or no threshold can tell."""
        matters = not key.endswith("max_window_layers") or section.get("use_sliding_window")
        if matters and list(first_kind) != sorted(first_kind, reverse=True):
            self.notes.append(
                f"`{key}` in config.json can't describe these layers: layers that are below it in their models come "
                "after others"
            )


def _question(name: str, value: Any, count: int) -> Callable[[Any, int], Any] | None:
    """What to ask of a key for each layer; None if it says nothing of single layers."""
    if name in _THRESHOLDS and isinstance(value, int):
        return _is_below
    if name in _NUMBERS and isinstance(value, list):
        return _is_listed
    one_by_one = _ONE_BY_ONE.search(name) and isinstance(value, list) and len(value) == count
    return _entry if one_by_one else None


def _is_listed(said: Any, layer: int) -> bool | None:
    return layer in said if isinstance(said, list) else None


def _is_below(said: Any, layer: int) -> bool | None:
    return layer < said if isinstance(said, int) else None


def _entry(said: Any, layer: int) -> Any:
    return said[layer] if isinstance(said, list) and layer < len(said) else None
