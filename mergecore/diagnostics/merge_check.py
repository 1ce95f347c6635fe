"""Does a GPU give the bytes of the CPU for whole merges?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergecore import methods
from mergecore.api import merge
from mergecore.methods import Method, Scope

_SHAPES = {"small": (7,), "row": (1, 4099), "matrix": (96, 1000), "large": (1100, 521)}
"""Of the tensors: the large one has several chunks, and none has a length that suits a GPU."""
_MEMORIES = (None, "150MB")
"""Of the device: what is free, and so little that the large tensor goes through in tiles."""


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """One method's merges on one device."""

    method: str
    device: str
    problem: str
    """Empty: all bytes are the same."""

    @property
    def passed(self) -> bool:
        return not self.problem


def check_merges(device: str) -> Iterator[MergeCheck]:
    """Merge small generated models by each of mergecore's methods, on the CPU and on the device."""
    with TemporaryDirectory() as root:
        files = _write_models(Path(root))
        for name in methods.names():
            method = methods.get(name)
            if method.recipe.__module__.startswith("mergecore."):
                yield MergeCheck(name, device, _problem(_config(method, files), device, Path(root) / name))


def _problem(config: dict[str, Any], device: str, out: Path) -> str:
    try:
        want = _merged(config, out / "cpu", device="cpu", workers=0)
        for i, memory in enumerate(_MEMORIES):
            got = _merged(config, out / f"{i}", device=device, device_memory=memory)
            if got != want:
                limit = f" within {memory}" if memory else ""
                return f"{sum(a != b for a, b in zip(got, want, strict=True))} bytes differ from the CPU's{limit}"
    except Exception as error:  # as in kernel_check: the others are still looked at
        return f"{type(error).__name__}: {error}"
    return ""


def _merged(config: dict[str, Any], out: Path, **options: Any) -> bytes:
    """The bytes of the merged model's weights."""
    merge(config, out, seed=1, **options)
    return (out / "model.safetensors").read_bytes()


def _write_models(folder: Path) -> dict[str, Path]:
    """A base and two fine-tunes, in bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator) * scale for name, shape in _SHAPES.items()}

    base = noise(0.02)
    models = {"base": base}
    for name in ("a", "b"):
        models[name] = {key: base[key] + change for key, change in noise(0.001).items()}
    files = {}
    for name, tensors in models.items():
        files[name] = folder / f"{name}.safetensors"
        save_file({key: x.bfloat16() for key, x in tensors.items()}, files[name])
    return files


def _config(method: Method, files: Mapping[str, Path]) -> dict[str, Any]:
    """The method's example."""
    has_base = method.space == "deltas"
    most = method.models[1]
    names = ["a", "b"][: None if most is None else most - (has_base and method.base_counts)]
    values = {name: getattr(method.example, name) for name in method.example.model_fields_set}
    shared = {p.name for p in method.parameters if p.scope is Scope.SHARED}
    entries = [
        {"model": str(files[name]), "parameters": {
            key: value[i] for key, value in values.items()
            if key not in shared and isinstance(value, tuple) and value[i] is not None
        }}
        for i, name in enumerate(names)
    ]  # fmt: skip
    base = {"base_model": str(files["base"])} if has_base else {}
    parameters = {key: value for key, value in values.items() if key in shared}
    return {"merge_method": method.name, "models": entries, "parameters": parameters, **base}
