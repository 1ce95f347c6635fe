"""The architecture of a model that nobody has described, read off its config and the names and shapes of its tensors.

Tensors `model.layers.0.*`, `model.layers.1.*`, ... are layers if config.json has a number of layers that fits, or if it
has none that fits anything, and each has tensors in sub-modules. What is in no layer is loose. A tensor is required if
all models have it, in all layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergecore.checkpoint.architecture import (
    DEFAULT_MODULE,
    LAYER,
    Architecture,
    Module,
    Weight,
    first_key,
    look_up,
)
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.errors import PlanError, some_of

INFERRED = "inferred"
"""Begins `Architecture.definition` of what comes from here."""
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")
_COUNT_WORDS = {"layer", "layers", "depth", "block", "blocks"}
_OTHER_WORDS = {
    "num", "n", "hidden", "total", "transformer", "attention", "encoder", "decoder", "vision", "text", "audio",
}  # fmt: skip
_EXTRA_LAYERS = "num_nextn_predict_layers"
"""Layers for predicting further tokens, which follow the others on disk and are not counted among them."""
_ROLES = {
    "encoder": "encoder", "decoder": "decoder",
    "vision": "vision", "visual": "vision", "image": "vision", "vit": "vision",
    "text": "text", "language": "text", "llm": "text",
    "audio": "audio", "speech": "audio",
}  # fmt: skip
"""What words in tensor names and in keys of config.json say of a part of a model."""
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output|proj_out)(\.linear)?\.(weight|bias)$")
_LAST = re.compile(r"(^|[._])(norm|norm_f|ln_f|layer_?norm|head|score|classifier|logits)([._]|$)")
_FIRST = re.compile(r"embed|wte|wpe")
_VOCABULARY_SIZE = ("vocab_size", "text_config.vocab_size", "n_vocab", "llm_config.vocab_size")


def is_inferred(architecture: Architecture) -> bool:
    return architecture.definition[0] == INFERRED


def infer(models: Sequence[Checkpoint]) -> Architecture:
    """The architecture that all models have. Raises PlanError if they don't have the same kinds of layers."""
    stacks = [_stacks(model) for model in models]
    for model, found in zip(models, stacks, strict=True):
        if found.keys() != stacks[0].keys():
            raise PlanError.at(
                model.folder,
                f"has layers {_listed(found)}, but {models[0].folder} has {_listed(stacks[0])}",
                "--allow-crimes merges them by the structure of the first",
            )
    name = (models[0].config.get("architectures") or [models[0].config["model_type"]])[0]
    one = len(stacks[0]) == 1
    modules = [
        _stack_module(DEFAULT_MODULE if one else prefix, prefix, key, models, [found[prefix][1] for found in stacks])
        for prefix, (key, _) in stacks[0].items()
    ]
    loose = _loose(models, stacks)
    if one:
        modules[0] = replace(modules[0], before=loose.before, after=loose.after)
    else:
        modules.append(loose)
    notes = [f"`{name}` is not a known architecture; layers are taken to be {_listed(stacks[0])}"]
    partial = _not_in_all(modules, models)
    if partial:
        shown = some_of(partial)
        notes.append(
            f"{len(partial)} kinds of tensors are not in all models, and merged from those that have them: {shown}"
        )
    return Architecture(
        name=name,
        definition=(INFERRED, *stacks[0]),
        modules=tuple(modules),
        vocabulary_size=_VOCABULARY_SIZE,
        notes=tuple(notes),
    )


def _not_in_all(modules: Sequence[Module], models: Sequence[Checkpoint]) -> list[str]:
    """Templates of the tensors that some models have and others don't."""
    kinds: list[set[str]] = []
    for model in models:
        counts = [module.layers_of(model) for module in modules]
        places = [[m.template(name, n) for m, n in zip(modules, counts, strict=True)] for name in model.tensors]
        kinds.append({next(filter(None, place), name) for name, place in zip(model.tensors, places, strict=True)})
    return sorted(kinds[0].union(*kinds) - kinds[0].intersection(*kinds))


def _listed(stacks: Mapping[str, object]) -> str:
    return ", ".join(f"`{prefix}.*`" for prefix in stacks) or "nowhere"


def _stacks(model: Checkpoint) -> dict[str, tuple[str | None, int]]:
    """The prefixes of layers, each with the key in config.json that counts them, if there is one, and their number."""
    numbers: dict[str, set[int]] = {}
    nested: dict[str, bool] = {}
    for name in model.tensors:
        if match := _NUMBERED.match(name):
            numbers.setdefault(match[1], set()).add(int(match[2]))
            nested[match[1]] = nested.get(match[1], True) and "." in match[3]
    whole = {prefix: len(found) for prefix, found in numbers.items() if found == set(range(len(found)))}
    counts = dict(_layer_counts(model.config))
    extra = model.config.get(_EXTRA_LAYERS)
    counted: dict[str, tuple[str | None, int]] = {}
    for prefix, n in whole.items():
        for n_layers in (n, n - extra if isinstance(extra, int) else n):
            keys = [key for key, value in counts.items() if value == n_layers]
            if keys and prefix not in counted:
                counted[prefix] = max(keys, key=lambda key: _likeness(prefix, key)), n_layers
    return counted or {prefix: (None, n) for prefix, n in whole.items() if n > 1 and nested[prefix]}


def _layer_counts(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """All keys whose name says that they count layers, with their values."""
    for key, value in config.items():
        words = set(key.split("_"))
        if isinstance(value, Mapping):
            yield from _layer_counts(value, f"{path}{key}.")
        elif type(value) is int and words & _COUNT_WORDS and not words - _COUNT_WORDS - _OTHER_WORDS:
            yield path + key, value


def _likeness(prefix: str, key: str) -> tuple[int, int]:
    """How well a key for a number of layers fits to layers with this prefix: by their role, then by its plainness."""
    roles, wanted = ({_ROLES[w] for w in re.split(r"[._]", name) if w in _ROLES} for name in (prefix, key))
    return 2 * len(roles & wanted) - len(wanted - roles - {"text"}), -len(key)


def _stack_module(
    name: str, prefix: str, key: str | None, models: Sequence[Checkpoint], counts: Sequence[int]
) -> Module:
    found: Counter[str] = Counter()
    module = Module(name, prefixes=(f"{prefix}.{LAYER}.",), layer_count=() if key is None else (key,))
    for model, count in zip(models, counts, strict=True):
        found.update(filter(None, (module.template(tensor, count) for tensor in model.tensors)))
    return replace(module, layer=tuple(Weight(template, optional=n < sum(counts)) for template, n in found.items()))


def _loose(models: Sequence[Checkpoint], stacks: Sequence[Mapping[str, tuple[str | None, int]]]) -> Module:
    """The tensors that are in no layer."""
    found: Counter[str] = Counter()
    for model, layers in zip(models, stacks, strict=True):
        found.update(name for name in model.tensors if not _in_layers(name, layers))
    embedding = next(filter(_EMBEDDING.search, found), None)
    weights = [
        Weight(
            name,
            optional=n < len(models),
            tied_to=(embedding,) if embedding and _is_tied_head(name, models) else (),
            vocabulary_axis=_vocabulary_axis(name, models),
        )
        for name, n in found.items()
    ]
    return Module(
        DEFAULT_MODULE,
        before=tuple(weight for weight in weights if not _is_last(weight.name)),
        after=tuple(weight for weight in weights if _is_last(weight.name)),
    )


def _is_last(name: str) -> bool:
    """Whether a loose tensor comes after the layers, as heads and final norms do."""
    return bool(_HEAD.search(name) or (_LAST.search(name) and not _FIRST.search(name)))


def _in_layers(name: str, layers: Mapping[str, tuple[str | None, int]]) -> bool:
    match = _NUMBERED.match(name)
    return match is not None and match[1] in layers and int(match[2]) < layers[match[1]][1]


def _is_tied_head(name: str, models: Sequence[Checkpoint]) -> bool:
    """Whether this is an output head that the models without it share with the embedding."""
    without = [model.config for model in models if name not in model.tensors]
    if not without or not _HEAD.search(name) or not name.endswith(".weight"):
        return False
    keys = ("tie_word_embeddings", "text_config.tie_word_embeddings")
    return all(look_up(config, first_key(config, keys) or keys[0]) is not False for config in without)


def _vocabulary_axis(name: str, models: Sequence[Checkpoint]) -> int | None:
    """0 where the first axis has an entry per token, or a few more than there are tokens."""
    for model in models:
        size = look_up(model.config, first_key(model.config, _VOCABULARY_SIZE) or _VOCABULARY_SIZE[0])
        if name not in model.tensors or not isinstance(size, int) or not model.tensors[name].shape:
            continue
        rows = model.tensors[name].shape[0]
        by_name = _EMBEDDING.search(name) or _HEAD.search(name)
        return 0 if rows == size or (by_name and rows > size) else None
    return None
