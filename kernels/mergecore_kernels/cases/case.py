"""One thing to run: an operation, a dtype, a number of models, a size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from mergecore_kernels.cases.catalogue import OPERATIONS, Operation
from mergecore_kernels.cases.sizes import SIZES, Size

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
"""By name."""
SCRATCH_BYTES = 256 << 20
"""The budget of an operation, beside the tensors."""
OVERHEAD_BYTES = 1 << 30
"""What running, checking and timing take beside the tensors."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to run."""

    operation: Operation
    dtype: str
    """Of all tensors: a key of DTYPES. But the output of float8 inputs is bfloat16."""
    models: int
    size: Size
    odd: bool = False
    """Tensors don't begin at a multiple of 16 bytes, and hold zeros of both signs, subnormals and, where the operation
    isn't a sum over elements, NaN and Inf."""

    @property
    def name(self) -> str:
        """`ties bf16 M=3 q_proj`"""
        return f"{self.operation.name} {self.dtype} M={self.models} {self.size.name}" + (" odd" if self.odd else "")

    @property
    def bytes_moved(self) -> int:
        """The least possible: every input read once, the output written once."""
        read = (self.models + self.operation.base) * DTYPES[self.dtype].itemsize
        return self.size.n * (read + self.operation.writes * self.out_dtype.itemsize)

    @property
    def out_dtype(self) -> torch.dtype:
        return torch.bfloat16 if DTYPES[self.dtype].itemsize == 1 else DTYPES[self.dtype]

    @property
    def steps_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.operation.steps(self.models) * self.size.n / self.bytes_moved

    @property
    def memory_bytes(self) -> int:
        """What it needs on the device that runs it, and what the copy needs that it is compared with."""
        tensors = max(self.bytes_moved, 2 * self.size.n * DTYPES[self.dtype].itemsize)
        return tensors + self.operation.scratch_bytes * self.size.n + OVERHEAD_BYTES

    @property
    def by_hand_bytes(self) -> int:
        """What the same operation needs when it is written by hand: float32 copies of the deltas, masks, products."""
        return self.memory_bytes + 16 * (self.models + 1) * self.size.n


def select_cases(
    operations: Iterable[str], dtypes: Iterable[str], models: Iterable[int], sizes: Iterable[str]
) -> Iterator[Case]:
    """All combinations of the names, by size and dtype; operations of one input once."""
    counts = tuple(models)
    for size, dtype, name in product(sizes, dtypes, operations):
        for m in (1,) if OPERATIONS[name].single else counts:
            yield Case(OPERATIONS[name], dtype, m, SIZES[size])
