"""Checkpoints without files, made from lists of tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergecore.checkpoint.architecture import AFTER, EXPERT, LAYER, Architecture, Module
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


def names_of(module: Module) -> list[str]:
    """All tensors of a module, optional ones too, of three layers with two experts each."""
    numbers = range(module.first_layer, module.first_layer + N_LAYERS)
    templates = [weight.name.replace(AFTER, str(numbers.stop)) for weight in module.weights]
    of_experts = [t.replace(EXPERT, str(i)) for t in templates for i in range(2 if EXPERT in t else 1)]
    return [t.replace(LAYER, str(i)) for t in of_experts for i in (numbers if LAYER in t else [0])]


def model_of(architecture: Architecture) -> Checkpoint:
    """A model with all tensors of a definition, optional ones too, three layers in each module and two experts."""
    names = [name for module in architecture.modules for name in names_of(module)]
    config: dict[str, Any] = {"architectures": [architecture.name], "model_type": architecture.model_type}
    for module in architecture.modules:
        for key in (*module.layer_count[:1], *module.expert_count[:1]):
            *sections, last = key.split(".")
            section = config
            for part in sections:
                section = section.setdefault(part, {})
            section[last] = 2 if key in module.expert_count else N_LAYERS
    return checkpoint(names, config)
