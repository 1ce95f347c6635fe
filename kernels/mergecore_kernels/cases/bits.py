"""Are two results the same, bit for bit?"""

from __future__ import annotations

from collections.abc import Iterator
from math import isinf, isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergecore_kernels.operations import Trim

BLOCK = 1 << 24
"""Elements that are compared at a time."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(got: Any, want: Any) -> str:
    """Where two results of a case differ first, in words; nothing if they don't.

    Finite values must have the same bits. The bits of a NaN and the sign of an Inf are the device's.
    """
    if isinstance(want, Tensor):
        return _tensors(got, want)
    found, wanted = list(_numbers(got)), list(_numbers(want))
    if len(found) != len(wanted):
        return f"{len(found)} numbers instead of {len(wanted)}"
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if not _same(a, b):
            return f"number {i} is {_exact(a)} instead of {_exact(b)}"
    return ""


def _tensors(got: Tensor, want: Tensor) -> str:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} {tuple(got.shape)} instead of {want.dtype} {tuple(want.shape)}"
    count, first = 0, ""
    for at in range(0, want.numel(), BLOCK):
        a, b = got[at : at + BLOCK].to("cpu"), want[at : at + BLOCK].to("cpu")
        integers = _INTEGERS[want.dtype.itemsize]
        same = a.view(integers) == b.view(integers)
        if bool(same.all()):
            continue
        same |= (torch.isnan(a) & torch.isnan(b)) | (torch.isinf(a) & torch.isinf(b))
        places = torch.nonzero(~same).flatten()
        if len(places) and not first:
            i = int(places[0])
            first = f"element {at + i} is {_exact(a[i].item())} instead of {_exact(b[i].item())}"
        count += len(places)
    return f"{count} of {want.numel()} elements differ: {first}" if count else ""


def _numbers(result: Any) -> Iterator[float | int | None]:
    """All numbers of a measurement, in order."""
    if isinstance(result, np.ndarray):
        result = result.tolist()
    if isinstance(result, dict):
        result = list(result.items())
    if isinstance(result, list | tuple):
        for part in result:
            yield from _numbers(part)
    elif isinstance(result, Trim):
        yield from (result.magnitude, result.hash_cut, result.upper, result.upper_cut)
    else:
        yield result


def _same(a: float | int | None, b: float | int | None) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex() or (isnan(a) and isnan(b)) or (isinf(a) and isinf(b))
    return a == b


def _exact(value: float | int | None) -> str:
    """`0.1 (0x1.99999ap-4)`: floats in decimal and exact."""
    return f"{value:.9g} ({value.hex()})" if isinstance(value, float) else str(value)
