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
from mergecore.diagnostics.kernel_check import anonymous
from mergecore.methods import Method, Scope
from mergecore.stream.accelerator import open_gpus

_SHAPES = {"small": (7,), "row": (1, 4099), "matrix": (96, 331), "large": (1100, 1000)}
"""Of the tensors. The large one has many chunks."""
_MEMORIES = (None, "32MB")
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
    """Merge small generated models by each of mergecore's methods, on the CPU and on each GPU that `device` names."""
    gpus = _names(device)
    with TemporaryDirectory() as root:
        files = _write_models(Path(root))
        for name in methods.names():
            method = methods.get(name)
            if method.recipe.__module__.startswith("mergecore."):
                config = _config(method, files)
                want = _merged(config, Path(root) / name / "cpu", device="cpu", workers=0)
                for gpu in gpus:
                    yield MergeCheck(name, gpu, _problem(config, want, gpu, Path(root) / name / gpu.replace(":", "")))


def _names(device: str) -> list[str]:
    return [str(gpu.device) for gpu in open_gpus(device)]


def _problem(config: dict[str, Any], want: bytes, device: str, out: Path) -> str:
    try:
        for i, memory in enumerate(_MEMORIES):
            got = _merged(config, out / f"{i}", device=device, device_memory=memory)
            if got != want:
                limit = f" within {memory}" if memory else ""
                return f"{sum(a != b for a, b in zip(got, want, strict=True))} bytes differ from the CPU's{limit}"
    except Exception as error:  # as in kernel_check: the others are still looked at
        return anonymous(f"{type(error).__name__}: {error}")
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
