"""A small tensor that is in no file: zeros, or what is computed before the first tensor is merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from mergecore.checkpoint.dtypes import Dtype, Shaped


@dataclass(frozen=True, slots=True)
class InlineTensor(Shaped):
    """A tensor whose values are carried along. Compared by what they are called, since they may not be known yet."""

    label: str
    """What the values are."""
    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes = field(default=b"", compare=False, repr=False)
    """The elements, one after another, the last axis fastest; empty until they are known."""

    @classmethod
    def zeros(cls, dtype: Dtype, shape: tuple[int, ...]) -> InlineTensor:
        return cls("zeros", dtype, shape, bytes(prod(shape) * dtype.size))

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into` with the elements from `start` on, which must be known."""
        begin = start * self.dtype.size
        into[:] = memoryview(self.data)[begin : begin + len(into)]
