"""config.json of the output: the donor's, with what the merge changed."""

from __future__ import annotations

import copy
from typing import Any

from mergecore.checkpoint.architecture import put
from mergecore.plan.plan import Plan

_DTYPE_KEYS = ("dtype", "torch_dtype")
"""New and old name of the element type in config.json."""
_TIED_KEY = "tie_word_embeddings"


def config_json(plan: Plan) -> dict[str, Any]:
    """The donor's config with the output's layers, vocabulary, element type and tying of the head.

    Empty if the donor has none.
    """
    if not plan.donor_config:
        return {}
    config = copy.deepcopy(plan.donor_config)
    for settings in (*(layers.settings for layers in plan.layers), plan.vocabulary_settings):
        for key, value in settings.items():
            put(config, key, value)
    said = [name for name in _DTYPE_KEYS if name in config]
    for name in said or ([] if "_class_name" in config else ["torch_dtype"]):  # diffusers knows no such key
        config[name] = plan.dtype.torch_name
    if plan.has_head is not None:
        _set_tied(config, tied=not plan.has_head)
    config.pop("_name_or_path", None)
    return config


def _set_tied(config: dict[str, Any], *, tied: bool) -> None:
    """Say what is written, wherever it is said: a loader that believes the head is tied ignores one that was merged."""
    nested = (value for value in config.values() if isinstance(value, dict) and "vocab_size" in value)
    said = [section for section in (config, *nested) if _TIED_KEY in section]
    for section in said or ([] if tied else [config]):
        section[_TIED_KEY] = tied
