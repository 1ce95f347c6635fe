"""Keys that mean nothing: misspelt ones are errors, and of those that mergekit ignores the user is warned."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from mergecore import methods
from mergecore.config.levels import Kind, Level
from mergecore.config.origin import Finding, KeyPath
from mergecore.config.setting import shown
from mergecore.methods import Method, Scope

KNOWN = {
    Kind.CONFIG: (
        "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
        "tokenizer", "tokenizer_source", "chat_template", "experts", "name",
    ),
    Kind.MODEL: ("model", "parameters"),
    Kind.MODULE: ("models", "slices", "parameters"),
    Kind.SLICE: ("sources", "base_model", "parameters"),
    Kind.SOURCE: ("model", "layer_range", "parameters"),
    Kind.REFERENCE: ("model", "lora", "override_architecture"),
    Kind.REFERENCE_PART: ("path", "revision"),
    Kind.CONDITIONAL: ("filter", "value"),
    Kind.TOKENIZER: ("source", "tokens", "pad_to_multiple_of"),
    Kind.TOKEN: ("source", "force"),
    Kind.MODEL_TOKEN: ("kind", "model", "token", "token_id"),
    Kind.ZERO_TOKEN: ("kind",),
    Kind.MIXTURE: (
        "merge_method", "base_model", "experts", "shared_experts", "gate_mode", "experts_per_token", "architecture",
        "dtype", "expert_layout", "name",
    ),
    Kind.EXPERT: ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"),
}  # fmt: skip
"""The keys of each kind of mapping. Those of `parameters` are the method's parameters."""

WITHOUT_EFFECT = {
    (Kind.SLICE, "residual_weight"): "mergekit accepts it and never uses it",
    (Kind.MODEL, "layer_range"): "to choose layers, write `slices` with `sources` instead of `models`",
    (Kind.CONFIG, "input_model_parameters"): "write the `parameters` of a model in its entry",
    (Kind.CONFIG, "pad_to_multiple_of"): "it belongs under `tokenizer`",
    (Kind.MIXTURE, "models"): "the models of a mixture are its `experts`",
    (Kind.MIXTURE, "slices"): "all layers of a mixture have the same experts",
    (Kind.MIXTURE, "tokenizer"): "the tokenizer is that of the base model",
    (Kind.MIXTURE, "tokenizer_source"): "the tokenizer is that of the base model",
    (Kind.MIXTURE, "out_dtype"): "`dtype` is the type of the tensors that are written",
}
"""Keys that are seen in real configs, and what to do about them."""

PARAMETERS = (Kind.PARAMETERS, Kind.OWN_PARAMETERS, Kind.BASE_PARAMETERS)
PRIVATE = ("_", ".", "x-")
"""How keys begin that are there to hold anchors, or notes. They are never taken for misspelt."""
LEAST_LIKENESS = 0.75


@dataclass(frozen=True, slots=True)
class Unknown(Finding):
    """A key without a meaning."""

    meant: str | None = None
    """The key that it is nearly: then it is an error, else a warning."""


def find(levels: Iterable[Level], method: Method | None) -> Iterator[Unknown]:
    """All keys in `levels` without a meaning. Without a method nothing can be said about parameters."""
    for level in levels:
        if level.kind not in PARAMETERS:
            yield from _keys(level, method)
        elif method is not None:
            yield from _parameters(level, method)


def _keys(level: Level, method: Method | None) -> Iterator[Unknown]:
    known = KNOWN[level.kind]
    for key in level.mapping:
        if key in known:
            continue
        path, name = (*level.path, key), key if isinstance(key, str) else shown(key)
        what = f"`{name}` is not a key of {level.kind.value}"
        advice = WITHOUT_EFFECT.get((level.kind, key)) if isinstance(key, str) else None
        meant = None if advice else closest(key, known, level.mapping)
        if meant is not None:
            yield Unknown(path, what, f"did you mean `{meant}`?", meant)
        elif advice is None and method is not None and key in (p.name for p in method.parameters):
            yield Unknown(path, f"{what} and has no effect", f"move it into `parameters`, it is one of `{method.name}`")
        else:
            yield Unknown(path, f"{what} and has no effect", advice or "")


def _parameters(level: Level, method: Method) -> Iterator[Unknown]:
    scopes = {p.name: p.scope for p in method.parameters}
    for name in level.mapping:
        path, what = (*level.path, name), f"`{name}` is not a parameter of `{method.name}`"
        if name in scopes:
            yield from _misplaced(level.kind, path, scopes[name])
            continue
        owners = [other for other in methods.names() if name in (p.name for p in methods.get(other).parameters)]
        meant = None if owners else closest(name, scopes, level.mapping)
        if meant is not None:
            yield Unknown(path, what, f"did you mean `{meant}`?", meant)
        else:
            hint = f"it is one of {', '.join(owners)}" if owners else _names(scopes)
            yield Unknown(path, f"{what} and has no effect", hint)


def _misplaced(kind: Kind, path: KeyPath, scope: Scope) -> Iterator[Unknown]:
    """A parameter that is not looked up where it is written."""
    if scope is Scope.SHARED and kind is not Kind.PARAMETERS:
        yield Unknown(
            path,
            f"`{path[-1]}` has one value for all models, so it has no effect under one of them",
            "move it into `parameters` at the top level or of a slice",
        )
    elif scope is Scope.TASK and kind is Kind.BASE_PARAMETERS:
        yield Unknown(
            path, f"`{path[-1]}` belongs to the models other than the base, so it has no effect under the base"
        )


def _names(parameters: Collection[str]) -> str:
    return f"its parameters are: {', '.join(parameters)}" if parameters else "it has no parameters"


def closest(key: object, known: Iterable[str], present: Collection[object] = ()) -> str | None:
    """The known name that `key` nearly is. One that is `present` already was hardly meant a second time."""
    if not isinstance(key, str) or key.startswith(PRIVATE):
        return None
    absent = [name for name in known if name not in present]
    plain = key.lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(plain, absent, n=1, cutoff=LEAST_LIKENESS)), None)
