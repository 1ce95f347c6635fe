"""The element types of files in torch."""

from __future__ import annotations

import torch

from mergecore.checkpoint.dtypes import Dtype


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The element type in torch."""
    return _TORCH[dtype]


def dtype_of_torch(dtype: torch.dtype) -> Dtype:
    """The inverse of `torch_dtype`. Raises KeyError."""
    return _FROM_TORCH[dtype]


_TORCH = {
    Dtype.F64: torch.float64,
    Dtype.F32: torch.float32,
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F8_E4M3: torch.float8_e4m3fn,
    Dtype.F8_E5M2: torch.float8_e5m2,
    Dtype.I64: torch.int64,
    Dtype.I32: torch.int32,
    Dtype.I16: torch.int16,
    Dtype.I8: torch.int8,
    Dtype.U8: torch.uint8,
    Dtype.BOOL: torch.bool,
    Dtype.U64: torch.uint64,
    Dtype.U32: torch.uint32,
    Dtype.U16: torch.uint16,
}
_FROM_TORCH = {in_torch: dtype for dtype, in_torch in _TORCH.items()}
