"""Checkpoints without files, made from lists of tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergecore.checkpoint.architecture import EXPERT, LAYER, Architecture
from mergecore.checkpoint.checkpoint import Checkpoint
from mergecore.checkpoint.dtypes import Dtype
from mergecore.checkpoint.safetensors_file import TensorRef

N_LAYERS = 3


def checkpoint(
    names: Iterable[str], config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Checkpoint:
    """A model with tensors of these names; their shape is [2, 2] if `shapes` doesn't say another."""
    shapes = shapes or {}
    tensors = {name: TensorRef("weights", 0, Dtype.F32, shapes.get(name, (2, 2))) for name in names}
    return Checkpoint(Path("model"), dict(config), tensors)


def layers(prefix: str, n: int, *names: str) -> list[str]:
    return [f"{prefix}.{i}.{name}" for i in range(n) for name in names]


def model_of(architecture: Architecture) -> Checkpoint:
    """A model with all tensors of a definition, optional ones too, three layers in each module and two experts."""
    templates = [weight.name for module in architecture.modules for weight in module.weights]
    numbered = [t.replace(EXPERT, str(i)) for t in templates for i in range(2 if EXPERT in t else 1)]
    names = [t.replace(LAYER, str(i)) for t in numbered for i in range(N_LAYERS if LAYER in t else 1)]
    config: dict[str, Any] = {"architectures": [architecture.name], "model_type": architecture.model_type}
    for module in architecture.modules:
        for key in (*module.layer_count[:1], *module.expert_count[:1]):
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = 2 if key in module.expert_count else N_LAYERS
    return checkpoint(names, config)
