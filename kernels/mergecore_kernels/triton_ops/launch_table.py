"""Many tensors in one launch: which programs there are, and where each finds its tensors.

Jobs that a kernel can treat alike (a `Layout`) share a launch. It reads two tables on the device:

    rows    int64 [jobs, 4 + M]   n, start, address of out, of the base, of each input
    blocks  int64 [programs, 2]   job, index of the program's first element within the job's tile

An address is 0 where there is no such tensor. A tile without elements has a row but no program. The launcher keeps the
tables until the kernel is in the stream's queue; after that the stream's order protects their memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.torch_ops.tile import Tile

BLOCK = 2048
"""Elements of a program of an element-wise kernel: 8 per thread, which is 128 bits of a 16-bit dtype."""
ALIGNMENT = 16
"""Bytes: what a 128-bit load or store needs."""
DTYPES = {
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kernel is compiled for: jobs of one layout can share a launch."""

    inputs: tuple[torch.dtype, ...]
    """[M]"""
    base: torch.dtype | None
    out: torch.dtype | None
    aligned: bool
    """Whether all addresses are multiples of ALIGNMENT."""

    @classmethod
    def of(cls, tile: Tile, out: Tensor | None = None) -> Layout:
        tensors = [x for x in (*tile.inputs, tile.base, out) if x is not None]
        return cls(
            tuple(x.dtype for x in tile.inputs),
            None if tile.base is None else tile.base.dtype,
            None if out is None else out.dtype,
            all(x.data_ptr() % ALIGNMENT == 0 for x in tensors),
        )

    def of_rows(self, columns: int) -> Layout:
        """The same for rows of so many columns as jobs."""
        dtypes = [dtype for dtype in (*self.inputs, self.base) if dtype is not None]
        return replace(self, aligned=self.aligned and all(columns * d.itemsize % ALIGNMENT == 0 for d in dtypes))

    def constants(self) -> dict[str, Any]:
        """The kernel's constexpr arguments INPUTS, BASE and ALIGNED, and OUT where there is an output."""
        constants = {
            "INPUTS": tuple(DTYPES[dtype] for dtype in self.inputs),
            "BASE": None if self.base is None else DTYPES[self.base],
            "ALIGNED": self.aligned,
        }
        return constants if self.out is None else constants | {"OUT": DTYPES[self.out]}


@dataclass(frozen=True, slots=True)
class LaunchTable:
    """The two tables of a launch, on the device."""

    rows: Tensor
    """int64 [jobs, 4 + M]"""
    blocks: Tensor
    """int64 [programs, 2]"""

    @property
    def programs(self) -> int:
        return self.blocks.shape[0]


def grouped(jobs: Iterable[tuple[Hashable, Job]]) -> dict[Any, list[Job]]:
    """(kind, job) pairs -> the jobs of each kind, in order."""
    groups: dict[Any, list[Job]] = {}
    for kind, job in jobs:
        groups.setdefault(kind, []).append(job)
    return groups


def launch_table(
    tiles: Sequence[Tile], outs: Sequence[Tensor] | None, device: torch.device, block: int = BLOCK
) -> LaunchTable:
    """The tables for tiles of one layout, one copy to the device each."""
    rows = [
        [
            len(tile),
            tile.start,
            0 if outs is None else outs[job].data_ptr(),
            0 if tile.base is None else tile.base.data_ptr(),
            *(x.data_ptr() for x in tile.inputs),
        ]
        for job, tile in enumerate(tiles)
    ]
    table = np.array(rows, dtype=np.int64)
    return LaunchTable(to_device(table, device), to_device(_blocks(table[:, 0], block), device))


def launch(
    kernel: Any,
    layout: Layout,
    tiles: Sequence[Tile],
    outs: Sequence[Tensor] | None,
    device: torch.device,
    *arguments: Tensor,
    per_thread: int = 8,
    **constants: Any,
) -> None:
    """Run an element-wise kernel on tiles of one layout, with so many elements per thread; not if there are none.

    It is given the two tables, the arguments, the layout's constants, these constants, and BLOCK.
    """
    block = BLOCK // 8 * per_thread
    table = launch_table(tiles, outs, device, block)
    if table.programs:
        options = launch_options(block, per_thread)
        kernel[(table.programs,)](
            table.rows, table.blocks, *arguments, **layout.constants(), **constants, BLOCK=block, **options
        )


def row_table(tile: Tile, columns: int, device: torch.device, block: int) -> LaunchTable:
    """The tables with each row of so many columns as a job of its own. The tile is whole rows."""
    tensors = [None, tile.base, *tile.inputs]
    begins = np.arange(0, len(tile), columns)
    addresses = [0 * begins if x is None else x.data_ptr() + begins * x.element_size() for x in tensors]
    rows = np.stack([np.full_like(begins, columns), tile.start + begins, *addresses], axis=1)
    return LaunchTable(to_device(rows, device), to_device(_blocks(rows[:, 0], block), device))


def tensor_bytes(tile: Tile, out: Tensor | None = None) -> int:
    """Bytes of the tile's tensors and of its output: what one pass moves at least."""
    return sum(x.numel() * x.element_size() for x in (*tile.inputs, tile.base, out) if x is not None)


def floats_on_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Python numbers, in lists of any depth, rounded once to float32."""
    return to_device(torch.tensor(values, dtype=torch.float64).to(torch.float32).numpy(), device)


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Queue a copy to the device; the host doesn't wait."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        # From pageable memory the copy would hold up the host. The pinned block is kept until the copy is done.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def launch_options(elements: int = BLOCK, per_thread: int = 8) -> dict[str, Any]:
    """For programs of so many elements: warps, and no fused multiply-add, as each step is rounded by itself."""
    warps = max(elements // (per_thread * _warp_size()), 1)
    return {"num_warps": warps, "enable_fp_fusion": False}


def _warp_size() -> int:
    if triton.knobs.runtime.interpret:
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


def _blocks(lengths: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    """[jobs] -> [programs, 2]"""
    counts = -(-lengths // block)
    job = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    return np.stack([job, (np.arange(len(job)) - first[job]) * block], axis=1)
