"""What kind of model a checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence

from mergecore.checkpoint.architecture import DEFAULT_MODULE, EXPERT, Architecture, Module, Weight
from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.definitions import definitions
from mergecore.checkpoint.inference import infer
from mergecore.errors import PlanError

RAW = "state dict"
"""The name of what has no architecture."""
ALL, COMMON, ANY = TENSORS = ("all", "common", "any")
"""Which tensors of state dicts are merged: all, and none may be missing; those that all models have; all that there
are, each from the models that have it."""


def recognize(model: Checkpoint) -> Architecture:
    """The definition for a model, by its config; what has none is inferred from its tensors. Raises PlanError."""
    if is_raw(model):
        return raw([model])
    names = model.config.get("architectures", [])
    is_name = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)
    if "architectures" in model.config and not is_name:
        raise PlanError.at(model.folder / CONFIG_FILE, f"`architectures` should hold one name, found {names!r:.60}")
    candidates = definitions().get(names[0], ()) if names else ()
    return _best(candidates, model) if candidates else infer([model])


def is_raw(model: Checkpoint) -> bool:
    """Whether a model's config doesn't say what it is: its tensors are all there is to go by."""
    return "architectures" not in model.config and "model_type" not in model.config


def raw(models: Sequence[Checkpoint], tensors: str = ALL) -> Architecture:
    """All tensors of the models, without layers. `tensors` says what becomes of those that a model lacks."""
    names = dict.fromkeys(name for model in models for name in model.tensors)
    in_all = {name for name in names if all(name in model.tensors for model in models)}
    if tensors == COMMON:
        names = {name: None for name in names if name in in_all}
    weights = tuple(Weight(name, optional=tensors == ANY and name not in in_all) for name in names)
    return Architecture(RAW, (RAW,), (Module(DEFAULT_MODULE, before=weights),))


def _best(candidates: Sequence[Architecture], model: Checkpoint) -> Architecture:
    """The one with the model's type, and of several the one whose required names the model has most of."""
    of_type = [c for c in candidates if c.model_type == model.config.get("model_type")] or candidates
    return of_type[0] if len(of_type) == 1 else max(of_type, key=lambda candidate: _n_found(candidate, model))


def _n_found(architecture: Architecture, model: Checkpoint) -> int:
    """How many of the required tensors before, after and in the first layer a model has, by their first names."""
    found = 0
    for module in architecture.modules:
        numbered = [(weight, module.first_layer) for weight in module.before + module.layer]
        numbered += [(weight, module.first_layer + module.layers_of(model)) for weight in module.after]
        required = ((w, number) for w, number in numbered if not w.optional and EXPERT not in w.name)
        found += sum(next(weight.own_names(number)) in model.tensors for weight, number in required)
    return found
