"""README.md of an adapter: what it was made from, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mergecore.adapters.report import Extraction
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.model_reference import ModelReference
from mergecore.output.model_card import escaped, fenced


def extraction_card(found: Extraction, names: Sequence[ModelReference], models: Sequence[Checkpoint]) -> str:
    """Of an adapter that was extracted from the first of two models, for the second."""
    model, base = (_model(str(name), one.commit) for name, one in zip(names, models, strict=True))
    wholes = [tensor.name for tensor in found.tensors if tensor.rank is None]
    whole_text = f"\n\nHeld as they are: {len(wholes)} tensors, such as {escaped(wholes[0])}." if wholes else ""
    notes = "".join(f"\n\nNote: {escaped(note)}." for note in found.notes)
    return (
        f"{_metadata(names[1].path if models[1].commit else None, [])}"
        f"# A LoRA adapter that was extracted\n\n"
        f"What {model} has that {base} hasn't, extracted with mergecore by truncated singular value decomposition: "
        f"{len(found.matrices)} matrices, {found.rule}, relative error {found.error:.4f} "
        f"(energy kept {found.energy:.4f}), {found.parameters:,} parameters.{whole_text}{notes}\n"
    )


def merge_card(method: str, adapters: Sequence[str], base: str | None, config: str) -> str:
    """Of an adapter that was merged from others, for `base`. `config` is the YAML."""
    listed = "\n".join(f"- {escaped(name)}" for name in adapters)
    for_base = f"\n\nFor the base model {escaped(base)}." if base else ""
    return (
        f"{_metadata(None, [method])}"
        f"# A merge of {len(adapters)} LoRA adapters\n\n"
        f"Merged with mergecore, method `{method}`.{for_base}\n\n"
        f"## Adapters\n\n{listed}\n\n## Configuration\n\n{fenced(config)}"
    )


def _model(name: str, commit: str | None) -> str:
    return f"{escaped(name)} (commit {commit})" if commit else escaped(name)


def _metadata(base: str | None, tags: Sequence[str]) -> str:
    content: dict[str, Any] = {
        **({"base_model": base} if base else {}), "library_name": "peft", "tags": ["lora", "mergecore", *tags]
    }  # fmt: skip
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"
