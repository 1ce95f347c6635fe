"""Makes the plan of a mixture of experts, from its config and the headers of its models. Reads no weight.

The tensors are planned like those of any merge: the base model's are copied, the experts' are copied under other names
or scaled, and get noise where the config says so. Routers are small tensors whose values are found later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.checkpoint.location import OnDownload
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.checkpoint.recognition import recognize
from mergecore.checkpoint.tokenizer_files import TokenizerFiles
from mergecore.checkpoint.weight_files import written_stem
from mergecore.config.mixture import METHOD, MixtureConfig
from mergecore.config.schema import DTYPES
from mergecore.errors import PlanError
from mergecore.moe.choice import choose_output
from mergecore.moe.outputs import mixture_config
from mergecore.moe.tensors import MixturePlanner
from mergecore.plan.build import draw_seed, most_common_dtype, without_collector
from mergecore.plan.models import open_models
from mergecore.plan.options import PlanOptions
from mergecore.plan.plan import Model, ModuleLayers, Plan
from mergecore.plan.problems import first_problems
from mergecore.plan.quantized import quantization_problems
from mergecore.plan.shards import assign_shards

_HEAD = "lm_head.weight"
_DTYPE_KEYS = ("dtype", "torch_dtype")


@without_collector()
def build_mixture(
    config: MixtureConfig,
    options: PlanOptions,
    *,
    stages: Mapping[str, Checkpoint],
    on_download: OnDownload,
) -> Plan:
    """The plan of the mixture that `config` describes. For the arguments see `mergecore.plan.build.build`.

    All but the experts is the base model's, so of the options only `seed` and `shard_bytes` have something to say.
    Raises MergeError with all problems there are.
    """
    opened = open_models(_referenced(config), config.folder, stages, on_download)
    models, names = list(opened.values()), [str(reference) for reference in opened]
    PlanError.raise_if_any(quantization_problems(zip(names, models, strict=True)))
    _check_adapter(config, models[0])
    output = choose_output(config, models, names)
    architecture = recognize(models[0]).fitted(models[:1])
    (module,) = architecture.modules
    positions = {reference: i for i, reference in enumerate(opened)}
    planner = MixturePlanner(config, output, module, positions, models, names, _dtype(config, models[0]))
    unplaced = list(planner.tensors())
    PlanError.raise_if_any(first_problems(planner.problems))
    donor_config = mixture_config(
        output,
        models[0].config,
        experts=len(config.experts),
        shared_experts=len(config.shared_experts),
        experts_per_token=config.experts_per_token,
    )
    placed, shards = assign_shards(unplaced, options.shard_bytes, written_stem(donor_config))
    is_random = config.is_random or any(e.noise_scale for e in (*config.experts, *config.shared_experts))
    return Plan(
        config=config.resolved(),
        method=METHOD,
        architecture=output.architecture,
        models=tuple(
            Model(name, model.folder, model.commit, model.download) for name, model in zip(names, models, strict=True)
        ),
        donor=0,
        donor_config=donor_config,
        layers=(ModuleLayers(module.name, planner.n_layers, {}),),
        files=architecture.files,
        tokenizer=models[0].tokenizer or TokenizerFiles(models[0].folder),
        vocabulary=None,
        vocabulary_settings={},
        dtype=most_common_dtype(placed),
        has_head=any(tensor.name == _HEAD for tensor in placed),
        tensors=placed,
        shards=shards,
        surveyed=False,
        seed=(draw_seed() if options.seed is None else options.seed) if is_random else None,
        notes=(*map(str, config.warnings), *_notes(config, models[0])),
        name=config.name,
        gates=planner.gates(),
    )


def _referenced(config: MixtureConfig) -> dict[ModelReference, str]:
    """All models, the base first, each with the place where it is first named."""
    found = {config.base_model: config.where("base_model")}
    for key in ("experts", "shared_experts"):
        for i, expert in enumerate(getattr(config, key)):
            found.setdefault(expert.source_model, config.where(key, i, "source_model"))
    return found


def _dtype(config: MixtureConfig, base: Checkpoint) -> Dtype:
    """Of the output: what the config says, or the base model's, or else what that one is stored in."""
    said = (config.dtype, *(base.config.get(key) for key in _DTYPE_KEYS))
    named = next((name for name in said if name in DTYPES), None)
    if named is not None:
        return Dtype.from_torch_name(named)
    return promote(tensor.dtype for tensor in base.tensors.values() if tensor.dtype.is_floating)


def _check_adapter(config: MixtureConfig, base: Checkpoint) -> None:
    """Raises PlanError where gates are found by what the base makes of prompts, and it has an adapter."""
    if base.updates and not config.is_random:
        raise PlanError.at(
            config.where("base_model"),
            f"the gates of mode `{config.gate_mode}` are found by running the base model, which can't have an adapter",
            "merge the adapter in a stage of its own before, with `merge_method: passthrough`",
        )


def _notes(config: MixtureConfig, base: Checkpoint) -> Iterator[str]:
    """What the user should know of the mixture."""
    n = len(config.experts)
    where = config.where("experts")
    if n & (n - 1):
        yield f"{where}: {n} experts are not a power of two, which some programs ask for (llama.cpp is one)"
    same = {(e.source_model, e.noise_scale, e.residual_scale) for e in config.experts}
    if len(same) == 1 and n > 1:
        yield f"{where}: all experts are the same model, so until it is trained the mixture is no better than that one"
    is_mistral = base.config.get("model_type") == "mistral"
    if base.config.get("sliding_window") and base.config.get("use_sliding_window", is_mistral):
        yield f"{base.folder}: its attention looks back {base.config['sliding_window']} tokens, the mixture's at all"
