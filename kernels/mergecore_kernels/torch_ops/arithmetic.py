"""How values get in and out: exact casts on load, one rounding at the store."""

from __future__ import annotations

from ctypes import c_float

import torch
from torch import Tensor

from mergecore_kernels.torch_ops.float8 import widen_e4m3fn

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""The integer dtype whose elements have the size of a compute dtype's."""


def load(x: Tensor, buffer: Tensor) -> Tensor:
    """[n] x in the buffer's dtype, an exact cast: x itself where nothing has to be cast, else the buffer."""
    if x.dtype == buffer.dtype:
        return x
    if x.dtype == torch.float8_e4m3fn and buffer.dtype == torch.float32 and x.device.type == "cpu":
        return widen_e4m3fn(x, buffer)
    return buffer.copy_(x)


def load_delta(x: Tensor, base: Tensor, out: Tensor) -> Tensor:
    """[n] out = x - base. `base` has been loaded already."""
    if x.dtype == out.dtype:
        return torch.sub(x, base, out=out)
    return load(x, out).sub_(base)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A Python number as the compute dtype, float32 or float64, holds it."""
    if dtype == torch.float64:
        return float(value)
    return c_float(value).value


def store(values: Tensor, out: Tensor) -> None:
    """Round to the output dtype, once, ties to even."""
    if values.dtype == torch.float64 and out.dtype in (torch.bfloat16, torch.float16):
        values = _to_odd(values)
    out.copy_(values)


def _to_odd(values: Tensor) -> Tensor:
    """[n] float64 -> float32, where an inexact result takes the neighbour whose last bit is odd.

    torch rounds float64 to 16 bits by way of float32, which rounds twice. After rounding to odd the second rounding
    sees on which side of a tie the exact value lies. Source: Boldo & Melquiond 2008, doi:10.1109/TC.2007.70819.
    """
    near = values.to(torch.float32)
    residue = values - near.to(torch.float64)
    bits = near.view(torch.int32)
    outwards = (residue > 0) == (near > 0)
    step = torch.where(outwards, 1, -1).to(torch.int32)
    move = (residue != 0) & torch.isfinite(residue) & ((bits & 1) == 0)
    # A value that underflows to zero takes the smallest number of its own sign.
    tiny = torch.copysign(torch.full_like(values, 2.0**-149), values).to(torch.float32)
    odd = torch.where(near == 0, tiny.view(torch.int32), bits + step)
    return torch.where(move, odd, bits).view(torch.float32)
