"""config.json of the output: the donor's, with what the merge changed."""

from __future__ import annotations

import copy
from typing import Any

from mergecore.plan.plan import Plan

_DTYPE_KEYS = ("dtype", "torch_dtype")
"""New and old name of the element type in config.json."""


def config_json(plan: Plan) -> dict[str, Any]:
    """The donor's config with the output's layer count, element type and tying of the head."""
    config = copy.deepcopy(plan.donor_config)
    key, count = plan.layer_count
    config[key] = count
    for name in [name for name in _DTYPE_KEYS if name in config] or ["torch_dtype"]:
        config[name] = plan.dtype.torch_name
    if plan.has_head and config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = False  # or loaders would ignore the head that was merged
    config.pop("_name_or_path", None)
    return config
