"""The merges that each family is put through: every method, and every way to write a parameter."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def on_models(method: str, models: dict[str, Config], base: str | None = None, **parameters: Any) -> Config:
    """A config in float32, with the parameters of each model and those of all."""
    config: Config = {"merge_method": method, "dtype": "float32"}
    config["models"] = [{"model": name, "parameters": own} if own else {"model": name} for name, own in models.items()]
    return config | ({"base_model": base} if base else {}) | ({"parameters": parameters} if parameters else {})


def tasks(method: str, density: float | None = None, names: str = "ab", **parameters: Any) -> Config:
    """A method on task vectors, with weights of both signs."""
    own = {} if density is None else {"density": density}
    weights = {"a": 0.6, "b": 0.8, "c": -0.3}
    return on_models(method, {name: {"weight": weights[name], **own} for name in names}, "base", **parameters)


WEIGHTED = {"a": {"weight": 0.3}, "b": {"weight": 0.9}}
PLAIN: dict[str, Config] = {"a": {}, "b": {}, "c": {}}

EVERYWHERE: dict[str, Config] = {
    "linear": on_models("linear", WEIGHTED),
    "linear, sum": on_models("linear", {**WEIGHTED, "c": {"weight": -0.2}}, normalize=False),
    "slerp": on_models("slerp", {"base": {}, "c": {}}, "base", t=0.3),
    "slerp beyond": on_models("slerp", {"base": {}, "a": {}}, "base", t=1.2),
    "nuslerp": on_models("nuslerp", WEIGHTED),
    "nuslerp of deltas": on_models("nuslerp", WEIGHTED, "base"),
    "nuslerp by row": on_models("nuslerp", WEIGHTED, nuslerp_flatten=False),
    "nuslerp by column": on_models("nuslerp", WEIGHTED, nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": on_models("multislerp", {**WEIGHTED, "c": {"weight": 0.4}}),
    "multislerp of deltas": on_models("multislerp", {**WEIGHTED, "c": {"weight": 0.4}}, "base", eps=1e-7),
    "karcher": on_models("karcher", PLAIN, max_iter=20),
    "task_arithmetic": tasks("task_arithmetic", names="abc", **{"lambda": 0.7}),
    "ties": tasks("ties", 0.4, names="abc"),
    "ties, rescaled sum": tasks("ties", 0.25, normalize=False, rescale=True, int8_mask=True),
    "dare_linear": tasks("dare_linear", 1.0, names="abc"),
    "dare_ties": tasks("dare_ties", 1.0, normalize=True),
    "breadcrumbs": tasks("breadcrumbs", 0.6, gamma=0.05),
    "breadcrumbs_ties": tasks("breadcrumbs_ties", 0.5, names="abc", gamma=0.1),
    "della": tasks("della", 1.0, names="abc"),
    "della_linear": tasks("della_linear", 1.0, **{"lambda": 1.3}),
    "sce": on_models("sce", PLAIN, "base"),
    "sce, selected": on_models("sce", PLAIN, "base", select_topk=0.4),
    "ram": on_models("ram", PLAIN, "base", epsilon=0.008),
    "ramplus_tl": on_models("ramplus_tl", PLAIN, "base", epsilon=0.008, r=0.2, alpha=0.3),
    "model_stock": on_models("model_stock", PLAIN, "base"),
    "model_stock by row": on_models("model_stock", PLAIN, "base", filter_wise=True),
    "nearswap": on_models("nearswap", {"a": {}}, "base", t=0.005),
    "arcee_fusion": on_models("arcee_fusion", {"base": {}, "c": {}}, "base"),
    "passthrough, scaled": on_models("passthrough", {"a": {"scale": 0.5}}),
}
"""Parameters are the same for all tensors."""

BY_TENSOR: dict[str, Config] = {
    "gradient": on_models("linear", {"a": {"weight": [0.1, 0.9]}, "b": {"weight": [1.0, 0.5, 0.2]}}),
    "filters": on_models(
        "slerp",
        {"base": {}, "b": {}},
        "base",
        t=[{"filter": "attn", "value": [0.0, 0.6]}, {"filter": "mlp", "value": 0.8}, {"value": 0.5}],
    ),
    "filters per model": tasks("ties")
    | {
        "models": [
            {"model": "a", "parameters": {"density": [{"filter": "mlp", "value": 0.5}, {"value": 0.9}], "weight": 1.0}},
            {"model": "b", "parameters": {"density": 0.3, "weight": [{"filter": "layers.1.", "value": 0.2}]}},
        ],
        "parameters": {"weight": 0.7, "normalize": [True, False]},
    },
}
"""Parameters differ from tensor to tensor."""


def cases(families: list[str], per_family: int = 8) -> list[tuple[str, str]]:
    """(family, name of the merge): so many of `EVERYWHERE` for each family in turn, and all of `BY_TENSOR`."""
    names = list(EVERYWHERE)
    chosen = [
        (family, names[(i * per_family + j) % len(names)])
        for i, family in enumerate(families)
        for j in range(per_family)
    ]
    return chosen + [(family, name) for family in families for name in BY_TENSOR]
