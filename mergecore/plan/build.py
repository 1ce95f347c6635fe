"""Makes the plan of a merge, from its config and the headers of its models. Reads no weight."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergecore import methods
from mergecore.checkpoint.architecture import Architecture, recognize
from mergecore.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.model_reference import ModelReference, locate
from mergecore.config.schema import Config
from mergecore.errors import MergeError, PlanError, Problem
from mergecore.plan.plan import Model, OutputTensor, Plan
from mergecore.plan.shards import assign_shards
from mergecore.plan.slices import referenced, slice_problems, slices_of
from mergecore.plan.tensors import TensorPlanner

DEFAULT_SHARD_BYTES = 5_000_000_000
_MOST_PROBLEMS = 20
_SEED_BITS = 32


def build(
    config: Config, *, seed: int | None = None, shard_bytes: int = DEFAULT_SHARD_BYTES, allow_crimes: bool = False
) -> Plan:
    """The plan of the merge that `config` describes.

    `seed` is for the methods with random numbers; None draws one. `allow_crimes` lets models of different
    architectures be merged, by the definition of the first. Raises MergeError with all problems there are.
    """
    method = methods.get(config.merge_method, config.where("merge_method"))
    models = _open(config)
    names = [str(reference) for reference in models]
    donor = _donor(config, models)
    architecture = _architecture(config, list(models.values()), names, donor, allow_crimes)
    slices = slices_of(config, architecture, models)
    layer_counts = [architecture.layers_of(model) for model in models.values()]
    PlanError.raise_if_any(problem for s in slices for problem in slice_problems(method, s, names, layer_counts))
    planner = TensorPlanner(
        method=method,
        architecture=architecture.extended(models.values()),
        models=list(models.values()),
        names=names,
        dtype=_dtype(config.dtype),
        out_dtype=_dtype(config.out_dtype),
        where=config.where(),
    )
    tensors = planner.tensors(slices)
    PlanError.raise_if_any(_first(planner.problems))
    placed, shards = assign_shards(tensors, shard_bytes)
    return Plan(
        config=config.resolved(),
        method=method.name,
        architecture=architecture.architectures[0],
        models=tuple(Model(name, model.folder) for name, model in zip(names, models.values(), strict=True)),
        donor=donor,
        donor_config=list(models.values())[donor].config,
        layer_count=(architecture.layer_count, sum(s.n_layers for s in slices)),
        dtype=_most_common_dtype(tensors),
        has_head=_has_head(architecture, tensors),
        tensors=placed,
        shards=shards,
        seed=(secrets.randbits(_SEED_BITS) if seed is None else seed) if method.random else None,
        notes=(*map(str, config.warnings), *_notes(planner.architecture)),
    )


def _open(config: Config) -> dict[ModelReference, Checkpoint]:
    """All models, in the order of the config."""
    folder = config.path.parent if config.path else None
    models: dict[ModelReference, Checkpoint] = {}
    errors: list[MergeError] = []
    for reference, where in referenced(config).items():
        try:
            models[reference] = _open_one(reference, folder, where)
        except MergeError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])(*(problem for error in errors for problem in error.problems))
    return models


def _open_one(reference: ModelReference, folder: Path | None, where: str) -> Checkpoint:
    model = open_checkpoint(locate(reference, folder, where=where))
    if reference.override_architecture is None:
        return model
    return replace(model, config={**model.config, "architectures": [reference.override_architecture]})


def _donor(config: Config, models: Mapping[ModelReference, Checkpoint]) -> int:
    """The model that gives config.json and the tokenizer: the base, or else the first."""
    return 0 if config.base_model is None else list(models).index(config.base_model)


def _architecture(
    config: Config, models: Sequence[Checkpoint], names: Sequence[str], donor: int, allow_crimes: bool
) -> Architecture:
    found = [recognize(model) for model in models]
    if len(set(found)) > 1 and not allow_crimes:
        each = ", ".join(f"{a.architectures[0]} in {name}" for a, name in zip(found, names, strict=True))
        raise PlanError.at(
            config.where(),
            f"the models have different architectures: {each}",
            "--allow-crimes merges them all the same",
        )
    return found[donor]


def _dtype(name: str | None) -> Dtype | None:
    return None if name is None else Dtype.from_torch_name(name)


def _most_common_dtype(tensors: Sequence[OutputTensor]) -> Dtype:
    bytes_of: Counter[Dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype.is_floating:
            bytes_of[tensor.dtype] += tensor.n_bytes
    return bytes_of.most_common(1)[0][0] if bytes_of else Dtype.F32


def _has_head(architecture: Architecture, tensors: Sequence[OutputTensor]) -> bool | None:
    """Whether an output head of its own is written; None if the architecture has none that could be tied."""
    heads = {weight.name for weight in architecture.after if weight.tied_to}
    return None if not heads else any(tensor.name in heads for tensor in tensors)


def _first(problems: Sequence[Problem]) -> list[Problem]:
    """Not more than a screenful."""
    shown = list(problems[:_MOST_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(Problem("", f"... and {len(problems) - len(shown)} more problems like these"))
    return shown


def _notes(architecture: Architecture) -> list[str]:
    if not architecture.extra:
        return []
    names = ", ".join(architecture.extra[:3]) + (", ..." if len(architecture.extra) > 3 else "")
    return [
        f"{len(architecture.extra)} kinds of tensors are not part of a {architecture.architectures[0]} and are merged "
        f"like the others: {names}"
    ]
