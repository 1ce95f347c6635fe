"""Opens the models that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from mergecore.checkpoint.adapter import with_adapter
from mergecore.checkpoint.checkpoint import Checkpoint, local_folder, open_checkpoint
from mergecore.checkpoint.location import OnDownload, locate, locate_adapter
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.errors import MergeError
from mergecore.plan.adapter_vocabulary import with_its_vocabulary

NO_STAGES: Mapping[str, Checkpoint] = MappingProxyType({})


def open_models(
    references: Mapping[ModelReference, str],
    config_folder: Path | None,
    stages: Mapping[str, Checkpoint],
    on_download: OnDownload,
) -> dict[ModelReference, Checkpoint]:
    """The models, in this order. Each reference comes with its place in the config; `stages` are those that will have
    been written by then, by name. Raises MergeError with all problems.
    """
    models: dict[ModelReference, Checkpoint] = {}
    errors: list[MergeError] = []
    for reference, where in references.items():
        try:
            models[reference] = _open(reference, config_folder, where, stages, on_download)
        except MergeError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])(*(problem for error in errors for problem in error.problems))
    return models


def _open(
    reference: ModelReference,
    config_folder: Path | None,
    where: str,
    stages: Mapping[str, Checkpoint],
    on_download: OnDownload,
) -> Checkpoint:
    model = stages.get(reference.path) or open_checkpoint(locate(reference, config_folder, where=where), on_download)
    adapter = locate_adapter(reference, config_folder, where=where)
    if adapter is not None:
        adapted = with_adapter(model, local_folder(adapter, on_download))
        model = with_its_vocabulary(adapted, model, adapter, on_download)
    if reference.override_architecture is None:
        return model
    return replace(model, config={**model.config, "architectures": [reference.override_architecture]})
