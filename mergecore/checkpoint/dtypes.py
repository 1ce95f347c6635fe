"""The element types of safetensors files, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from math import prod


class Dtype(Enum):
    """One element type. The value is its name in safetensors headers."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"

    __hash__ = object.__hash__  # each member is one object, and Enum's own hash is slow

    @property
    def size(self) -> int:
        """Bytes per element."""
        return _SIZES[self]

    @property
    def is_floating(self) -> bool:
        """Whether tensors of this type can be merged; others can only be copied."""
        return self in _TORCH_FLOATS

    @property
    def is_float8(self) -> bool:
        """Whether it is read but never written, as merged numbers would lose too much in it."""
        return self in _FLOAT8

    @property
    def torch_name(self) -> str:
        """`bfloat16`: as in torch and in configs. Floating types only."""
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
        8: (Dtype.F8_E4M3, Dtype.F8_E5M2, Dtype.I8, Dtype.U8, Dtype.BOOL),
    }.items()
    for dtype in dtypes
}
_TORCH_FLOATS = {
    Dtype.F64: "float64",
    Dtype.F32: "float32",
    Dtype.F16: "float16",
    Dtype.BF16: "bfloat16",
    Dtype.F8_E4M3: "float8_e4m3fn",
    Dtype.F8_E5M2: "float8_e5m2",
}
_FLOAT8 = {Dtype.F8_E4M3, Dtype.F8_E5M2}
_BY_TORCH_NAME = {name: dtype for dtype, name in _TORCH_FLOATS.items()}


class Shaped:
    """What has a dtype and a shape has so many elements, and bytes when it is read or written as a whole."""

    __slots__ = ()
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def n(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n * self.dtype.size


def promote(dtypes: Iterable[Dtype]) -> Dtype:
    """The type that holds all of `dtypes`, which are floating or equal: bfloat16 and float16 together need float32.

    Both of float8 fit into each of these two, and alone give bfloat16.
    """
    distinct = set(dtypes) - _FLOAT8 or {Dtype.BF16}
    if len(distinct) == 1:
        return distinct.pop()
    return Dtype.F64 if Dtype.F64 in distinct else Dtype.F32
