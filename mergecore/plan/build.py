"""Makes the plan of a merge, from its config and the headers of its models. Reads no weight."""

from __future__ import annotations

import gc
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mergecore import methods
from mergecore.checkpoint.architecture import Architecture
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.inference import infer, is_inferred
from mergecore.checkpoint.location import OnDownload
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.recognition import ALL, RAW, TENSORS, is_raw, raw, recognize
from mergecore.checkpoint.weight_files import written_stem
from mergecore.config.schema import Config
from mergecore.errors import PlanError, some_of
from mergecore.methods import Method
from mergecore.plan.embeddings import Embeddings, size_settings, vocabulary_sizes
from mergecore.plan.experts import in_one_layout
from mergecore.plan.layers import layers_of_output
from mergecore.plan.models import NO_STAGES, open_models
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import Model, OutputTensor, Plan
from mergecore.plan.problems import first_problems
from mergecore.plan.quantized import quantization_problems
from mergecore.plan.ranges import range_notes, range_problems
from mergecore.plan.shards import assign_shards
from mergecore.plan.slices import Stack, referenced, stack_problems, stacks_of
from mergecore.plan.tensors import TensorPlanner
from mergecore.tokenizer import vocabulary

DEFAULTS = PlanOptions()
_SEED_BITS = 32


@contextmanager
def without_collector() -> Iterator[None]:
    """A plan is made of up to millions of objects, none of them in a cycle: Python's search for cycles among them,
    again and again while they are made, would take as long as the rest.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collector()
def build(
    config: Config,
    options: PlanOptions = DEFAULTS,
    *,
    stages: Mapping[str, Checkpoint] = NO_STAGES,
    on_download: OnDownload = lambda download: None,
) -> Plan:
    """The plan of the merge that `config` describes.

    `stages` are models that will have been written when this merge begins, by the names that the config has for them.
    `on_download` is told of what planning itself downloads. Raises MergeError with all problems there are.
    """
    method = methods.get(config.merge_method, config.where("merge_method"))
    models = open_models(referenced(config), config.folder, stages, on_download)
    names = [str(reference) for reference in models]
    PlanError.raise_if_any(quantization_problems(zip(names, models.values(), strict=True)))
    donor = _donor(config, models)
    models, layout_notes = in_one_layout(models, donor)
    architecture = _architecture(config, list(models.values()), names, donor, options)
    if architecture.name != RAW:
        architecture = architecture.fitted(list(models.values()))
    stacks = stacks_of(config, architecture, models)
    PlanError.raise_if_any(problem for stack in stacks for problem in stack_problems(method, stack, names))
    donor_config = list(models.values())[donor].config
    sizes: list[int] = []
    if vocabulary.is_asked_for(config):
        sizes = vocabulary_sizes(architecture, models.values(), config.where("tokenizer"))
    made = vocabulary.make(config, models, sizes, donor, on_download)
    embeddings = Embeddings(list(models.values()), names, config.where(), made.vocabulary, options.truncate_embeddings)
    planner = TensorPlanner(
        method=method,
        architecture=architecture,
        models=list(models.values()),
        names=names,
        dtype=_dtype(config.dtype),
        out_dtype=_dtype(config.out_dtype),
        where=config.where(),
        embeddings=embeddings,
    )
    unplaced = planner.tensors(stacks)
    PlanError.raise_if_any(first_problems(planner.problems))
    PlanError.raise_if_any(range_problems(config.where(), unplaced))
    placed, shards = assign_shards(unplaced, options.shard_bytes, written_stem(donor_config))
    layers, layer_notes = layers_of_output(stacks, list(models.values()), donor)
    return Plan(
        config=config.resolved(),
        method=method.name,
        architecture=architecture.name,
        models=tuple(
            Model(name, model.folder, model.commit, model.download)
            for name, model in zip(names, models.values(), strict=True)
        ),
        donor=donor,
        donor_config=donor_config,
        layers=layers,
        files=architecture.files,
        tokenizer=made.files,
        vocabulary=made.vocabulary,
        vocabulary_settings=_vocabulary_settings(architecture, donor_config, embeddings),
        dtype=most_common_dtype(placed),
        has_head=_has_head(stacks, placed),
        tensors=placed,
        shards=shards,
        surveyed=_is_surveyed(method, placed),
        seed=(draw_seed() if options.seed is None else options.seed) if method.random else None,
        notes=(
            *map(str, config.warnings),
            *_notes(architecture, stacks),
            *layout_notes,
            *layer_notes,
            *_base_notes(planner),
            *range_notes(config.where(), placed),
            *made.notes,
            *embeddings.notes,
            *_float8_notes(config, placed),
        ),
        name=config.name,
    )


def draw_seed() -> int:
    """A seed for the methods with random numbers."""
    return secrets.randbits(_SEED_BITS)


def _donor(config: Config, models: Mapping[ModelReference, Checkpoint]) -> int:
    """The model that gives config.json and the tokenizer: the base, or else the first."""
    return 0 if config.base_model is None else list(models).index(config.base_model)


def _architecture(
    config: Config,
    models: Sequence[Checkpoint],
    names: Sequence[str],
    donor: int,
    options: PlanOptions,
) -> Architecture:
    """The one that all models have; that of the donor if `allow_crimes`. Raises PlanError."""
    tensors = options.tensors
    if tensors not in TENSORS:
        raise PlanError.at("tensors", f"should be one of {', '.join(TENSORS)}, found `{tensors}`")
    if all(map(is_raw, models)):
        return raw(models, tensors)
    if tensors != ALL:
        raise PlanError.at(
            config.where(),
            f"`tensors: {tensors}` is for files of weights without a config.json that says what they are",
            "leave it out: the architecture knows which tensors a model may lack",
        )
    found = [recognize(model) for model in models]
    if any(map(is_inferred, found)) and not any(map(is_raw, models)):
        return infer([models[donor]] if options.allow_crimes else [*models[donor:], *models[:donor]])
    if len(set(found)) > 1 and not options.allow_crimes:
        each = ", ".join(f"{a.name} in {name}" for a, name in zip(found, names, strict=True))
        raise PlanError.at(
            config.where(),
            f"the models have different architectures: {each}",
            _no_config_hint(models) or "--allow-crimes merges them all the same",
        )
    return found[donor]


def _no_config_hint(models: Sequence[Checkpoint]) -> str:
    """What to do if some models don't say what they are, as the others do."""
    folders = [str(model.folder) for model in models if is_raw(model)]
    return f"there is no config.json that says what is in {', '.join(folders)}" if folders else ""


def _dtype(name: str | None) -> Dtype | None:
    return None if name is None else Dtype.from_torch_name(name)


def _is_surveyed(method: Method, tensors: Sequence[OutputTensor]) -> bool:
    """Whether the method looks at the whole model before it merges."""
    if method.survey is None:
        return False
    looks = method.survey([(tensor.params, tensor.target(seed=0)) for tensor in tensors if tensor.method])
    return next(looks, None) is not None


def most_common_dtype(tensors: Sequence[OutputTensor]) -> Dtype:
    """Of floating point; float32 if there is none."""
    bytes_of: Counter[Dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype.is_floating:
            bytes_of[tensor.dtype] += tensor.n_bytes
    return bytes_of.most_common(1)[0][0] if bytes_of else Dtype.F32


def _has_head(stacks: Sequence[Stack], tensors: Sequence[OutputTensor]) -> bool | None:
    """Whether an output head of its own is written; None if none of the modules written has one that could be tied."""
    after = (weight for stack in stacks for weight in stack.module.after)
    heads = {weight.name for weight in after if weight.tied_to and weight.name.endswith(".weight")}
    return None if not heads else any(tensor.name in heads for tensor in tensors)


def _notes(architecture: Architecture, stacks: Sequence[Stack]) -> list[str]:
    notes = list(architecture.notes)
    if architecture.extra:
        notes.append(
            f"{len(architecture.extra)} kinds of tensors are not part of a {architecture.name} and are merged "
            f"like the others: {some_of(architecture.extra)}"
        )
    written = [stack.module for stack in stacks]
    left_out = [module.name for module in architecture.modules if module not in written]
    if left_out:
        notes.append(f"not in `modules`, so not written: {', '.join(left_out)}")
    return notes


def _vocabulary_settings(
    architecture: Architecture, donor_config: Mapping[str, Any], embeddings: Embeddings
) -> dict[str, Any]:
    """What config.json must say of the tokens, if they are not those of the donor."""
    merged = embeddings.vocabulary
    if merged is not None:
        return size_settings(architecture, donor_config, merged.n_rows) | dict(merged.settings)
    if embeddings.rows_left is not None:
        return size_settings(architecture, donor_config, embeddings.rows_left)
    return {}


def _base_notes(planner: TensorPlanner) -> list[str]:
    """Which tensors are the base's, as too few models have them."""
    found = planner.left_as_base
    if not found:
        return []
    return [
        f"fewer than {planner.method.models[0]} models have {len(found)} optional tensors, which are copied from the "
        f"base: {some_of(found)}"
    ]


def _float8_notes(config: Config, tensors: Sequence[OutputTensor]) -> list[str]:
    """What is written where all inputs are float8, if the config doesn't say it."""
    count = sum(all(source.tensor.dtype.is_float8 for source in tensor.sources) for tensor in tensors)
    if not count or config.dtype or config.out_dtype:
        return []
    return [f"{count} tensors are float8 in all models and are written in bfloat16; `out_dtype` can name another type"]
