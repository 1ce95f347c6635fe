"""What a kernel's compiled code is held to, stated beside the kernel and checked by compiling it for each target.

Each file with kernels has two things for that:

    CLAIMS = {"_its_kernel": Claim(...), ...}
    def examples(m: int, dtype: torch.dtype) -> Examples: ...

`examples` gives launches of the file's kernels on small CPU tensors, by way of the real launchers (the parts of
`combine_batch` and `measure_batch`); they are made with kernels that compile but don't run, so results mean nothing. It
is called for several m from 2 to 16; what m hardly changes can be shown for m = 2 only, to save time. The first example
is the most usual one: for most targets, dtypes and m it is the only one that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mergecore_kernels.torch_ops.workspace import Workspace

Examples: TypeAlias = dict[str, Callable[[Workspace], object]]
"""What is shown (such as "deltas" or "mixed dtypes") -> a function that makes the launches."""


def bytes_once(constants: Mapping[str, Any]) -> int:
    """Bytes per element that are read and written if each tensor of a kernel's launch table is touched once."""
    dtypes = [*constants["INPUTS"], constants["BASE"], constants.get("OUT")]
    return sum(dtype.primitive_bitwidth // 8 for dtype in dtypes if dtype is not None)


@dataclass(frozen=True, slots=True)
class Claim:
    """Of one kernel."""

    registers: Mapping[int, int]
    """The most registers of a thread, on any target, of kernels with up to so many inputs: what was measured plus some
    15 %. The last number holds for all that have more."""
    bytes_per_element: Callable[[Mapping[str, Any]], float] | None
    """constexpr arguments -> bytes that one pass reads and writes per element, which is the least possible.

    None for a kernel that works on tables of partial results rather than on the tensors, or whose bytes depend on more.
    """
    width_bits: Callable[[Mapping[str, Any]], int] = field(default=lambda constants: 128)
    """constexpr arguments -> of each access to the tensors, but for the last elements, where they are aligned.

    To float8 tensors half of that, as a thread has as many elements of them as of 16-bit ones.
    """
    divides: Callable[[Mapping[str, Any]], bool] = field(default=lambda constants: False)
    """constexpr arguments -> whether there is a division, of floats (`tl.div_rn`) or integers.

    On AMD exact division is made of fused multiply-adds; no other kernel may have them.
    """

    def most_registers(self, inputs: int) -> int:
        """Of a kernel with so many inputs."""
        steps = sorted(self.registers)
        return self.registers[next((step for step in steps if inputs <= step), steps[-1])]
