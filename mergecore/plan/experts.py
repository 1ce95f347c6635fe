"""Gives mixtures of experts that are merged one layout: a tensor of one can't be merged with a tensor of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.expert_layout import Layout, in_layout, layouts_of
from mergecore.checkpoint.recognition import recognize

Key = TypeVar("Key")


def in_one_layout(models: Mapping[Key, Checkpoint], donor: int) -> tuple[dict[Key, Checkpoint], list[str]]:
    """The models with the experts of all in one layout, and notes on those that have another on disk.

    It is that of the model at the position `donor`, or else of the first that has experts. Where all have the same,
    nothing is changed. Raises CheckpointError and PlanError if a model's experts can't be read so.
    """
    keys = (list(models)[donor], *models)
    known = ((key, recognize(models[key]).stackings) for key in keys)
    mixture = next(((key, stackings) for key, stackings in known if layouts_of(models[key], stackings)), None)
    if mixture is None:
        return dict(models), []
    first, stackings = mixture
    layouts = {key: layouts_of(model, stackings) for key, model in models.items()}
    if all(not found or found == layouts[first] for found in layouts.values()):
        return dict(models), []
    layout = Layout.STACKED if layouts[first] == {Layout.STACKED} else Layout.SEPARATE
    others = [key for key, found in layouts.items() if found - {layout}]
    converted = {key: in_layout(models[key], layout, stackings) for key in others}
    notes = [
        f"the experts of {key} are {_words(layouts[key])} on disk; they are merged and written {layout.value}, as "
        f"{first} has them"
        for key in others
    ]
    return {**models, **converted}, notes


def _words(layouts: set[Layout]) -> str:
    return " and ".join(sorted(layout.value for layout in layouts))
