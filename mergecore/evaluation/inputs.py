"""The models that a merged one was made from, by its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import Problem
from mergecore.evaluation.loading import folder_problems
from mergecore.output.manifest import Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class Input:
    """A model that was merged."""

    name: str
    """As the config names it; where the manifest doesn't say, its folder."""
    folder: Path


def inputs_of(folder: Path) -> tuple[list[Input], list[Problem]]:
    """The inputs of a merge that can be evaluated, each once, and why others can't. Raises CheckpointError.

    Of several stages these are the inputs of all of them, not what was deleted in between.
    """
    manifest = read_manifest(folder)
    found: dict[Path, Input] = {}
    problems = []
    for entry in _models(manifest):
        why_not = _why_not(entry)
        if why_not is None:
            found.setdefault(entry.folder.resolve(), entry)
        else:
            problems.append(why_not)
    return list(found.values()), problems


def _models(manifest: Manifest) -> Iterator[Input]:
    stages = manifest.content["inputs_of_stages"]
    for model in manifest.content["models"]:
        if ModelReference.parse(model["name"]).path not in stages:
            yield Input(model["name"], Path(model["folder"]))
    for files in stages.values():
        for folder in dict.fromkeys(Path(file).parent for file in files):
            yield Input(str(folder), folder)


def _why_not(model: Input) -> Problem | None:
    """Why an input can't be evaluated, if it can't."""
    adapter = ModelReference.parse(model.name).lora
    if adapter is not None and not str(model.folder).endswith(model.name):  # a folder may have a + in its name
        return Problem(model.name, "is left out: it is a model with an adapter", "merge the adapter into it first")
    problem = next(folder_problems(model.folder), None)
    return problem and Problem(model.name, f"is left out: {problem}")
