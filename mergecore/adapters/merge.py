"""Merges LoRA adapters into one, without their base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergecore.adapters.card import merge_card
from mergecore.adapters.combine import SCHEMES, Part, combined, concatenated, decomposed
from mergecore.adapters.folder import AdapterFolder, check_adapter_folder
from mergecore.adapters.merge_config import AdapterConfig, layer_of, load
from mergecore.adapters.module_factors import ModuleFactors, module_factors
from mergecore.adapters.origin import Input, Origin
from mergecore.adapters.peft_config import adapter_config, factor_names
from mergecore.checkpoint.adapter import Adapter, open_adapter
from mergecore.checkpoint.checkpoint import local_folder
from mergecore.checkpoint.dtypes import Dtype, promote
from mergecore.checkpoint.location import OnDownload, locate
from mergecore.checkpoint.safetensors_file import TensorRef
from mergecore.config.load import Source
from mergecore.errors import MergeError, RunError
from mergecore.plan.build import draw_seed
from mergecore.stream.reader import Files, raw_bytes
from mergecore.stream.torch_dtypes import torch_dtype


@dataclass(frozen=True, slots=True)
class AdapterMerge:
    """A merge of adapters that was carried out."""

    folder: Path
    method: str
    ranks: dict[str, int]
    """By module."""
    error: float | None
    """Of `svd`: the relative error of all updates together that its rank leaves; None for other methods."""
    seed: int | None
    """Of the methods with random numbers."""
    n_bytes: int
    """Of the file of weights."""
    notes: tuple[str, ...]


def merge_lora(
    config: Source,
    out: str | Path,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    on_download: OnDownload = lambda download: None,
) -> AdapterMerge:
    """Merge LoRA adapters of one base model into the folder `out`, by a config: a YAML file, or its content.

    `merge_method` is linear, cat, svd, ties, dare_linear or dare_ties, as in PEFT's `add_weighted_adapter`; each entry
    of `models` is an adapter with its `weight` and, for the methods that drop elements, its `density`. Ranks and scales
    of the adapters count. The base model isn't read. Without `seed` one is drawn, where the method is random.

    Raises MergeError: ConfigError, PlanError and CheckpointError before anything is written.
    """
    loaded = load(config)
    adapters = _open(loaded, on_download)
    plans = _plans(loaded, module_factors(adapters, loaded.merge_method))
    dtype = _dtype(loaded, plans)
    check_adapter_folder(Path(out), [adapter.folder for adapter in adapters], overwrite=overwrite)
    seed = _seed(loaded.merge_method, seed)
    names = [str(entry.model) for entry in loaded.models]
    base = _text(adapters[0], "base_model_name_or_path")
    origin = Origin(
        config=loaded.resolved(),
        inputs=[Input.of_adapter(name, adapter) for name, adapter in zip(names, adapters, strict=True)],
        base=base,
        seed=seed,
    )
    with Files() as files, AdapterFolder(Path(out), list(_shapes(plans, dtype))) as folder:
        kept = total = 0.0
        for plan in plans:
            parts = [_load(one, plan, adapters, files) for one in range(len(plan.weights))]
            down, up, energies = _merged(plan, loaded.merge_method, parts, seed or 0)
            kept, total = kept + sum(energies[: plan.rank]), total + sum(energies)
            for (name, _, shape), factor in zip(_shapes([plan], dtype), (down, up), strict=True):
                folder.add(name, factor.to(torch_dtype(dtype)).reshape(shape))
        card = merge_card(loaded.merge_method, names, base, loaded.source_text)
        folder.finish(_config(plans, adapters), card, origin.facts())
        return AdapterMerge(
            folder=Path(out),
            method=loaded.merge_method,
            ranks={plan.factors.module: plan.rank for plan in plans},
            error=sqrt(max(total - kept, 0.0) / total) if total else None,
            seed=seed,
            n_bytes=folder.weight_bytes,
            notes=tuple(_notes(adapters)),
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done for one module."""

    factors: ModuleFactors
    weights: tuple[float, ...]
    """Of the adapters that have the module."""
    densities: tuple[float, ...]
    rank: int
    """Of the result."""


def _open(config: AdapterConfig, on_download: OnDownload) -> list[Adapter]:
    """All adapters, in the order of the config. Raises MergeError with all problems."""
    adapters: list[Adapter] = []
    errors: list[MergeError] = []
    for i, entry in enumerate(config.models):
        try:
            location = locate(entry.model, config.folder, where=config.where("models", i, "model"))
            adapters.append(open_adapter(local_folder(location, on_download)))
        except MergeError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])(*(problem for error in errors for problem in error.problems))
    return adapters


def _plans(config: AdapterConfig, modules: Sequence[ModuleFactors]) -> list[_Plan]:
    """Raises ConfigError for parameters that have no value, or none of the right type."""
    n_layers = 1 + max(layer_of(one.module) or 0 for one in modules)
    return [
        _Plan(
            factors=one,
            weights=tuple(config.weight(factors.adapter, one.module, n_layers) for factors in one.factors),
            densities=tuple(config.density(factors.adapter, one.module, n_layers) for factors in one.factors),
            rank=_rank(config, one, n_layers),
        )
        for one in modules
    ]


def _rank(config: AdapterConfig, module: ModuleFactors, n_layers: int) -> int:
    if config.merge_method == "cat":
        return module.total_rank
    largest = max(one.rank for one in module.factors)
    if config.merge_method != "svd":
        return largest
    return min(config.rank(module.module, n_layers) or largest, module.total_rank, module.rows, module.columns)


def _dtype(config: AdapterConfig, plans: Sequence[_Plan]) -> Dtype:
    """The type of the result."""
    if config.dtype is not None:
        return Dtype.from_torch_name(config.dtype)
    return promote(tensor.dtype for plan in plans for one in plan.factors.factors for tensor in (one.up, one.down))


def _seed(method: str, seed: int | None) -> int | None:
    """None for a method that isn't random."""
    scheme = SCHEMES.get(method)
    if scheme is None or scheme.sparsify != "drop":
        return None
    return draw_seed() if seed is None else seed


def _shapes(plans: Sequence[_Plan], dtype: Dtype) -> Iterator[tuple[str, Dtype, tuple[int, ...]]]:
    """What will be written: of each module its A, then its B."""
    for plan in plans:
        names = factor_names(plan.factors.module, table=plan.factors.table)
        yield names.down, dtype, plan.factors.down_shape(plan.rank)
        yield names.up, dtype, plan.factors.up_shape(plan.rank)


def _load(index: int, plan: _Plan, adapters: Sequence[Adapter], files: Files) -> Part:
    """The factors of one of the module's adapters, in memory. Raises RunError if they aren't finite."""
    factors = plan.factors.factors[index]
    stored = (one.dtype for each in plan.factors.factors for one in (each.up, each.down))
    compute = torch.float64 if Dtype.F64 in stored else torch.float32
    up, down = (_read(tensor, files).to(compute) for tensor in (factors.up, factors.down))
    if not (up.isfinite().all() and down.isfinite().all()):
        folder = adapters[factors.adapter].folder
        raise RunError.at(folder, f"the factors of `{plan.factors.module}` hold values that are NaN or infinite")
    return Part(
        up=up.view(-1, factors.rank),
        down=down.view(factors.rank, -1),
        factor=plan.weights[index] * factors.scale,
        density=plan.densities[index],
        adapter=factors.adapter,
    )


def _read(tensor: TensorRef, files: Files) -> Tensor:
    raw = torch.empty(tensor.n_bytes, dtype=torch.uint8)
    files.read_elements(tensor, 0, raw_bytes(raw))
    return raw.view(torch_dtype(tensor.dtype))


def _merged(plan: _Plan, method: str, parts: Sequence[Part], seed: int) -> tuple[Tensor, Tensor, list[float]]:
    """Down, up, and for `svd` the squares of all singular values of the sum."""
    energies: list[float] = []
    if method == "cat":
        up, down = concatenated(parts)
    elif method == "svd":
        found = decomposed(parts)
        up, down = found.factors(plan.rank)
        energies = found.energies()
    else:
        up, down = combined(parts, SCHEMES[method], plan.factors.module, seed)
    return down, up, energies


def _config(plans: Sequence[_Plan], adapters: Sequence[Adapter]) -> dict[str, Any]:
    """adapter_config.json. Modules have their full names, as it isn't known which others the base has."""
    return adapter_config(
        {plan.factors.module: plan.rank for plan in plans},
        base=_text(adapters[0], "base_model_name_or_path"),
        revision=_text(adapters[0], "revision"),
        target_modules=sorted(plan.factors.module for plan in plans),
        task_type=_text(adapters[0], "task_type"),
        fan_in_fan_out=any(adapter.config.get("fan_in_fan_out") for adapter in adapters),
    )


def _text(adapter: Adapter, key: str) -> str | None:
    """What an adapter's config says, if that is text."""
    value = adapter.config.get(key)
    return value if isinstance(value, str) else None


def _notes(adapters: Sequence[Adapter]) -> Iterator[str]:
    bases = {_text(adapter, "base_model_name_or_path"): adapter.folder for adapter in adapters}
    if len(bases) > 1:
        each = ", ".join(f"{base} in {folder}" for base, folder in bases.items())
        yield f"the adapters name different base models: {each}"
