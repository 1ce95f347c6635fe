"""Refuses models of quantised numbers: codes that mean nothing without their scales, which a merge would not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mergecore.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from mergecore.checkpoint.joined_tensors import InFiles
from mergecore.errors import Problem

_DEQUANTISE = "dequantise it first: load it with transformers and save it in bfloat16"


def quantization_problems(models: Iterable[tuple[str, Checkpoint]]) -> Iterator[Problem]:
    """At most one for each model, given with its name in the config.

    Float8 tensors without a scale are plain numbers, and no problem.
    """
    for name, model in models:
        settings = model.config.get("quantization_config")
        if settings:
            yield _problem_by_config(name, settings, model.tensors)
        elif found := _scaled_float8(model.tensors):
            tensor, scale = found
            stored = model.tensors[tensor].dtype.value
            what = f"is quantised: `{tensor}` is {stored} with the scale `{scale}`, without which it means nothing"
            yield Problem(name, what, _DEQUANTISE)


def _problem_by_config(name: str, settings: Any, tensors: Mapping[str, InFiles]) -> Problem:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    source = f"`quantization_config` in {CONFIG_FILE}" + (f", {method}" if method else "")
    code = next((tensor for tensor, stored in tensors.items() if _is_code(stored)), None)
    if code is None:
        what = f"should be quantised ({source}), but its tensors are plain numbers"
        return Problem(name, what, "remove `quantization_config` if they have been dequantised")
    what = f"is quantised ({source}): `{code}` is {tensors[code].dtype.value} and means nothing without its scales"
    return Problem(name, what, _DEQUANTISE)


def _is_code(tensor: InFiles) -> bool:
    """Whether this may be a matrix of codes. Integers of 64 bits are positions and the like."""
    return tensor.dtype.is_float8 or (not tensor.dtype.is_floating and tensor.dtype.size < 8 and len(tensor.shape) > 1)


def _scaled_float8(tensors: Mapping[str, InFiles]) -> tuple[str, str] | None:
    """The first float8 tensor that has a scale, and its scale: `X.weight` with `X.weight_scale_inv`, `X.scale`, ..."""
    scales: dict[str, list[str]] = {}  # by what is before the last dot
    for name in tensors:
        module, _, last = name.rpartition(".")
        if "scale" in last:
            scales.setdefault(module, []).append(name)
    for name, tensor in tensors.items():
        if tensor.dtype.is_float8:
            module, _, last = name.rpartition(".")
            beside = [scale for scale in scales.get(module, []) if last == "weight" or scale.startswith(name)]
            for scale in (*beside, *scales.get(name, [])):
                return name, scale
    return None
