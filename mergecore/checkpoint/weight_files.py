"""Which files of a model hold its weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from mergecore.errors import CheckpointError

INDEX_SUFFIX = ".index.json"
BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")
"""Of the files that a model needs beside its weights: config, tokenizer, chat template, code of its own."""
_STANDARD = {
    ".safetensors": ("model", "diffusion_pytorch_model"),
    ".bin": ("pytorch_model", "diffusion_pytorch_model"),
}
"""The names that transformers and diffusers write, by format. The first format that is there is taken."""
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
_OTHER_USES = re.compile(r"adapter_model\.\w+|(training_args|optimizer|scheduler|rng_state|random_states).*\.bin")


def choose_weights(names: Collection[str], where: object) -> str:
    """The file that leads to all weights: one that holds them, or the index of several.

    Safetensors files go before pickled ones, standard names before others, and a single file before an index, which may
    be left over. Raises CheckpointError, at `where`, if there are no weights, or several and none has a standard name.
    """
    for suffix, stems in _STANDARD.items():
        found = _candidates(names, suffix)
        standard = next((stem + suffix for stem in stems if stem + suffix in found), None)
        if standard is None and len(found) > 1:
            raise CheckpointError.at(
                where,
                f"holds several sets of weights: {', '.join(sorted(found.values()))}",
                "leave one of them there, or name a file of weights in place of the folder",
            )
        if found:
            return found[standard] if standard else next(iter(found.values()))
    raise _none(names, where)


def written_stem(config: Mapping[str, Any]) -> str:
    """How the names of a model's weight files begin, so that the library whose config it is finds them."""
    return "diffusion_pytorch_model" if "_class_name" in config else "model"


def _candidates(names: Collection[str], suffix: str) -> dict[str, str]:
    """`model.safetensors` -> itself, or its index if only that is there."""
    found: dict[str, str] = {}
    for name in names:
        whole = name.removesuffix(INDEX_SUFFIX)
        if whole.endswith(suffix) and not _SHARD.fullmatch(whole) and not _OTHER_USES.fullmatch(whole):
            found[whole] = whole if whole in names else name
    return found


def _none(names: Collection[str], where: object) -> CheckpointError:
    shard = min((name for name in names if _SHARD.fullmatch(name)), default=None)
    if shard is not None:
        return CheckpointError.at(
            where, f"holds parts of weights ({shard}), but no index of them", "finish copying or downloading the model"
        )
    return CheckpointError.at(where, "holds no weights: neither model.safetensors nor pytorch_model.bin nor an index")
