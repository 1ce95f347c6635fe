"""Which kind of mixture is written."""

from __future__ import annotations

from collections.abc import Sequence

from mergecore.checkpoint.architecture import Module
from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.definitions import definitions
from mergecore.checkpoint.recognition import recognize
from mergecore.config.mixture import MixtureConfig
from mergecore.errors import PlanError, Problem
from mergecore.moe.outputs import COMPUTED, DEEPSEEK, MATRICES, OUTPUTS, QWEN, STACKED, Output

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers")


def choose_output(config: MixtureConfig, models: Sequence[Checkpoint], names: Sequence[str]) -> Output:
    """The first kind that the config leaves open and that can hold these models, of which the first is the base.

    Raises PlanError with what is against each.
    """
    model_type = _common_type(config, models, names)
    _check_class(config, models[0])
    PlanError.raise_if_any(_size_problems(config, models, names))
    reasons: list[str] = []
    for output in OUTPUTS:
        if output.name in config.architectures:
            reason = _against(output, config, model_type, models[0])
            if reason is None:
                return output
            reasons.append(f"{output.name} {reason}")
    where = config.where("architecture" if config.architecture else "experts")
    raise PlanError.at(where, f"no kind of mixture fits: {'; '.join(reasons)}")


def _common_type(config: MixtureConfig, models: Sequence[Checkpoint], names: Sequence[str]) -> str:
    types = [str(model.config.get("model_type")) for model in models]
    if len(set(types)) > 1:
        each = ", ".join(f"{kind} in {name}" for kind, name in zip(types, names, strict=True))
        hint = "a mixture is made of models of one kind"
        raise PlanError.at(config.where("experts"), f"the models have different `model_type`s: {each}", hint)
    return types[0]


def _check_class(config: MixtureConfig, base: Checkpoint) -> None:
    """Raises PlanError for a base that does anything else than predict tokens."""
    name = recognize(base).name
    if not name.endswith("ForCausalLM"):
        what = f"a mixture is made of models that predict the next token, and the base model is a {name}"
        raise PlanError.at(config.where("base_model"), what)


def _size_problems(config: MixtureConfig, models: Sequence[Checkpoint], names: Sequence[str]) -> list[Problem]:
    """Where the models' configs don't tell the base's sizes."""
    found = []
    for key in _SIZES:
        wanted = models[0].config.get(key)
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            what = f"`{key}` should be a number, found {wanted!r:.60}"
            found.append(Problem(str(models[0].folder / CONFIG_FILE), what))
            continue
        for model, name in zip(models[1:], names[1:], strict=True):
            size = model.config.get(key)
            if size != wanted:
                what = f"`{key}` is {size!r:.60} in {name}, but {wanted} in the base model {names[0]}"
                found.append(Problem(config.where("experts"), what, "all experts must have the base model's sizes"))
    return found


def _against(output: Output, config: MixtureConfig, model_type: str, base: Checkpoint) -> str | None:
    """Why a kind can't be written; None if it can."""
    if model_type not in output.inputs:
        return f"is made of {' or '.join(output.inputs)} models, found {model_type}"
    if config.expert_layout == STACKED and not output.can_stack:
        return "is only read with separate experts"
    return _against_shared(output, config) or _against_tensors(output, base)


def _against_shared(output: Output, config: MixtureConfig) -> str | None:
    shared = config.shared_experts
    if shared and not output.shared:
        return "has no shared experts"
    if output is DEEPSEEK and len(shared) > 1:
        return f"has one shared expert at most, found {len(shared)}"
    if output is DEEPSEEK and any(expert.positive_prompts for expert in shared):
        return "has no gate on its shared expert, so that one takes no prompts"
    if output is QWEN and len(shared) != 1:
        return f"has exactly one shared expert, found {len(shared)}"
    if output is QWEN and not config.is_random and not shared[0].positive_prompts:
        return f"has a gate on its shared expert, which needs `positive_prompts` in mode `{config.gate_mode}`"
    return None


def _against_tensors(output: Output, base: Checkpoint) -> str | None:
    """The first tensor of the base that there is no place for. For biases of MLPs there is none in any kind."""
    (module,) = recognize(base).fitted([base]).modules
    n_layers = module.layers_of(base)
    for name in base.tensors:
        template = module.template(name, n_layers) or name
        if not name.endswith(COMPUTED) and not _has_place(output, module, template):
            return f"has no place for `{name}` of the base model"
    return None


def _has_place(output: Output, dense: Module, template: str) -> bool:
    if ".mlp." in template:
        return template.endswith(tuple(f".{matrix}.weight" for matrix in MATRICES))
    module = definitions()[output.architecture][0].modules[0] if output.has_own_tensors else dense
    return any(template == weight.name for weight in module.weights)
