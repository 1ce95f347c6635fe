"""The element types of safetensors files, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Dtype(Enum):
    """One element type. The value is its name in safetensors headers."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"

    @property
    def size(self) -> int:
        """Bytes per element."""
        return _SIZES[self]

    @property
    def is_floating(self) -> bool:
        """Whether tensors of this type can be merged; others can only be copied."""
        return self in _TORCH_FLOATS

    @property
    def torch_name(self) -> str:
        """`bfloat16`: as in configs. Floating types only."""
        return _TORCH_FLOATS[self]

    @classmethod
    def from_torch_name(cls, name: str) -> Dtype:
        """The inverse of `torch_name`. Raises KeyError."""
        return _BY_TORCH_NAME[name]


_SIZES = {
    dtype: bits // 8
    for bits, dtypes in {
        64: (Dtype.F64, Dtype.I64, Dtype.U64),
        32: (Dtype.F32, Dtype.I32, Dtype.U32),
        16: (Dtype.F16, Dtype.BF16, Dtype.I16, Dtype.U16),
        8: (Dtype.I8, Dtype.U8, Dtype.BOOL),
    }.items()
    for dtype in dtypes
}
_TORCH_FLOATS = {Dtype.F64: "float64", Dtype.F32: "float32", Dtype.F16: "float16", Dtype.BF16: "bfloat16"}
_BY_TORCH_NAME = {name: dtype for dtype, name in _TORCH_FLOATS.items()}


def promote(dtypes: Iterable[Dtype]) -> Dtype:
    """The floating type that holds all of `dtypes`: bfloat16 and float16 together need float32."""
    distinct = set(dtypes)
    if len(distinct) == 1:
        return distinct.pop()
    return Dtype.F64 if Dtype.F64 in distinct else Dtype.F32
