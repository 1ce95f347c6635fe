"""What a config for a mixture of experts holds once it is checked: `experts` and a base model, in the place of models
that are merged.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import PlainValidator, TypeAdapter, ValidationError

from mergecore.config.origin import Finding, KeyPath
from mergecore.config.part import Part, Reference
from mergecore.config.schema import Document, Dtype, Entries
from mergecore.config.setting import shown

METHOD = "moe"
"""The `merge_method` of a mixture, which may be left out."""
GateMode: TypeAlias = Literal["hidden", "hidden_avg", "cheap_embed", "random", "uniform_random"]
GATE_MODES: tuple[str, ...] = get_args(GateMode)
RANDOM_MODES = ("random", "uniform_random")
_OTHER_NAMES = {"hidden_last": "hidden", "uniform": "uniform_random"}
"""Of modes."""
ARCHITECTURES = ("Mixtral", "DeepSeek MoE", "Qwen MoE", "Qwen3 MoE")
"""In the order in which they are tried. A config may give the beginning of a name."""
LAYOUTS = ("separate", "stacked")
_LONGEST = 50
"""Of a name that may be misspelt: to compare a long text would take long."""
_NUMBER = TypeAdapter(float)
_WHOLE_NUMBER = TypeAdapter(int)


def is_mixture(raw: Mapping[Any, Any]) -> bool:
    """Whether a config that isn't checked yet describes a mixture of experts."""
    return "experts" in raw or raw.get("merge_method") == METHOD


def _one_of(value: object, names: Sequence[str], what: str) -> str:
    """Raises ValueError(what, hint), as all validators here do."""
    if isinstance(value, str) and value in names:
        return value
    close = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) and len(value) < _LONGEST else []
    hint = f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(names)}"
    raise ValueError(f"{shown(value)} is not {what}", hint)


def _method(value: object) -> str:
    if value != METHOD:
        raise ValueError(f"{shown(value)} merges models and takes no `experts`", f"write `{METHOD}`, or leave it out")
    return METHOD


def _gate_mode(value: object) -> str:
    name = _OTHER_NAMES.get(value, value) if isinstance(value, str) else value
    return _one_of(name, GATE_MODES, "a mode for gates")


def _architecture(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and matching(value):
        return value
    return _one_of(value, ARCHITECTURES, "the kind of mixture that can be written")


def matching(beginning: str) -> tuple[str, ...]:
    """The architectures whose names begin so, whether in capitals or not."""
    return tuple(name for name in ARCHITECTURES if name.lower().startswith(beginning.lower()))


def _layout(value: object) -> str:
    return _one_of(value, LAYOUTS, "a layout of experts")


def _prompts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(prompt, str) for prompt in value):
        raise ValueError(f"expected a list of texts, found {shown(value)}", "write each text in quotes, after a `-`")
    return tuple(value)


def _finite(value: object) -> float:
    try:
        number = _NUMBER.validate_python(value)
    except ValidationError:
        raise ValueError(f"expected a number, found {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {shown(value)}")
    return number


def _noise(value: object) -> float:
    return 0.0 if value is None else abs(_finite(value))


def _factor(value: object) -> float:
    return 1.0 if value is None else _finite(value)


def _positive(value: object) -> int:
    try:
        count = _WHOLE_NUMBER.validate_python(value)
    except ValidationError:
        count = 0
    if count < 1:
        raise ValueError(f"expected a whole number from 1 on, found {shown(value)}")
    return count


Prompts: TypeAlias = Annotated[tuple[str, ...], PlainValidator(_prompts)]


class Expert(Part):
    """An entry of `experts` or `shared_experts`."""

    source_model: Reference
    """The model whose MLPs become this expert."""
    positive_prompts: Prompts = ()
    """Texts like those that the expert is for."""
    negative_prompts: Prompts = ()
    """Texts like those that it isn't for."""
    noise_scale: Annotated[float, PlainValidator(_noise)] = 0.0
    """Standard deviation of the normal noise that is added to its weights."""
    residual_scale: Annotated[float, PlainValidator(_factor)] = 1.0
    """Factor on what it adds to the hidden state: on its `down_proj`, after the noise."""


class MixtureConfig(Document):
    """A mixture of experts as it was asked for."""

    merge_method: Annotated[str, PlainValidator(_method)] = METHOD
    """May be left out."""
    base_model: Reference
    """Gives all but the experts: attention, embeddings, norms, tokenizer. Gates are found by it."""
    experts: tuple[Expert, ...]
    """Each token goes to some of them."""
    shared_experts: Entries[Expert] = ()
    """Each token goes to all of them."""
    gate_mode: Annotated[GateMode, PlainValidator(_gate_mode)] = "hidden"
    """What the routers begin with."""
    experts_per_token: Annotated[int, PlainValidator(_positive)] = 2
    """To how many experts a token goes."""
    architecture: Annotated[str | None, PlainValidator(_architecture)] = None
    """The kind of model that is written, or the beginning of its name; None: the first that fits."""
    dtype: Dtype | None = None
    """Of the tensors that are written; None: the one that the base model's config names, or is stored in."""
    expert_layout: Annotated[Literal["separate", "stacked"], PlainValidator(_layout)] = "separate"
    """Each matrix of each expert as a tensor, or those of a layer in one, as transformers writes them since 5.0."""

    @property
    def is_random(self) -> bool:
        """Whether the gates need no prompts."""
        return self.gate_mode in RANDOM_MODES

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that the config leaves open."""
        return matching(self.architecture or "")


def find(config: MixtureConfig) -> Iterator[Finding]:
    """What is wrong with experts and prompts that have the right form."""
    n = len(config.experts)
    if not n:
        yield Finding(("experts",), "there are no experts")
        return
    if config.experts_per_token > n:
        what = f"`experts_per_token` is {config.experts_per_token}, but the number of experts is {n}"
        yield Finding(("experts_per_token",) if n > 1 else ("experts",), what, f"write {n}, or less")
    if config.is_random:
        return
    yield from _without_prompts(config.experts, ("experts",), config.gate_mode)
    with_prompts = [expert for expert in config.shared_experts if expert.positive_prompts]
    if with_prompts:
        yield from _without_prompts(config.shared_experts, ("shared_experts",), config.gate_mode)
    if n > 1 and len({(e.positive_prompts, e.negative_prompts) for e in config.experts}) == 1:
        yield Finding(("experts",), "all experts have the same prompts, so their gates would be equal")


def _without_prompts(experts: Sequence[Expert], path: KeyPath, mode: str) -> Iterator[Finding]:
    for i, expert in enumerate(experts):
        if not expert.positive_prompts:
            what = f"`positive_prompts` of {path[0]}[{i}] is missing: the gates of mode `{mode}` are made from them"
            yield Finding((*path, i), what, f"or take one of the modes {', '.join(RANDOM_MODES)}")
