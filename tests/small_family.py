"""A small base model with fine-tunes, and an example of each method on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergecore import methods

ROWS, COLUMNS = 700, 301
"""Of the largest tensor: several chunks and a rest."""


def write_family(root: Path, base: dict[str, Tensor]) -> dict[str, Path]:
    """The folders of a base and of the fine-tunes a and b, in bfloat16, with many equal deltas."""
    generator = torch.Generator().manual_seed(5)
    base = dict(base)
    base["model.embed_tokens.weight"] = (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).bfloat16()
    folders = {}
    for name in ("base", "a", "b"):
        folder = folders[name] = root / name
        folder.mkdir()
        tensors = base if name == "base" else {
            key: (t.float() + torch.randn(t.shape, generator=generator) * 0.0005).bfloat16() for key, t in base.items()
        }  # fmt: skip
        save_file(tensors, folder / "model.safetensors")
        config_json = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
        (folder / "config.json").write_text(json.dumps(config_json))
    return folders


def example_config(method: str, family: Mapping[str, object]) -> dict[str, Any]:
    """The method's example on the family."""
    found = methods.get(method)
    values = {name: getattr(found.example, name) for name in found.example.model_fields_set}
    has_base = found.space == "deltas"
    most = found.models[1]
    names = ["a", "b"][: None if most is None else most - (has_base and found.base_counts)]
    scopes = {p.name: p.scope for p in found.parameters}
    entries = [
        {"model": str(family[name]), "parameters": {
            key: value[i] for key, value in values.items()
            if scopes[key] is not methods.Scope.SHARED and isinstance(value, tuple) and value[i] is not None
        }}
        for i, name in enumerate(names)
    ]  # fmt: skip
    source: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "bfloat16"}
    source["parameters"] = {k: v for k, v in values.items() if scopes[k] is methods.Scope.SHARED}
    if has_base:
        source["base_model"] = str(family["base"])
    return source


def load_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def same_bytes(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x.reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)) for name, x in a.items()
    )
