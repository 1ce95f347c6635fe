"""adapter_config.json and the names of tensors, as PEFT reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergecore.adapters.modules import last_part

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Factors:
    """The names of one module's two factors."""

    down: str
    """LoRA's A."""
    up: str
    """LoRA's B."""


def factor_names(module: str, *, table: bool = False) -> Factors:
    """Of a module; a `table` looks rows up."""
    if table:
        return Factors(f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B")
    return Factors(f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight")


def adapter_config(
    ranks: Mapping[str, int],
    *,
    base: str | None,
    revision: str | None = None,
    target_modules: Sequence[str],
    modules_to_save: Sequence[str] = (),
    task_type: str | None = "CAUSAL_LM",
    has_bias: bool = False,
    fan_in_fan_out: bool = False,
    ensure_weight_tying: bool = False,
) -> dict[str, Any]:
    """For factors with these ranks, by module, whose product is the update itself: alpha is the rank.

    `r` is the largest rank, as servers reserve memory by it. The others are told by patterns.
    """
    largest = max(ranks.values())
    pattern = _patterns(ranks, largest)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(target_modules),
        "modules_to_save": list(modules_to_save) or None,
        "bias": "all" if has_bias else "none",
        "fan_in_fan_out": fan_in_fan_out,
        "ensure_weight_tying": ensure_weight_tying,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _patterns(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """The ranks other than the usual one: by the last part of the name where all modules that end so have the same."""
    by_end: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        by_end.setdefault(last_part(module), set()).add(rank)
    return {
        last_part(module) if len(by_end[last_part(module)]) == 1 else module: rank
        for module, rank in ranks.items()
        if rank != usual
    }
