"""Sums in the order of `torch_ops/reduction_tree.py`, finished on the device.

A program adds the rows of WIDTH lanes of one chunk, then these lanes by the tree: WIDTH is a power of two, so its
lanes are a subtree. GROUPS programs share a chunk. The last kernel adds the groups (the rest of the tree), then the
chunks. Adding the zeros that fill up a tensor changes nothing but the sign of a zero, which the first addition to the
total, +0, takes away in both backends; so rows that don't exist are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.torch_ops.reduction_tree import LANES
from mergecore_kernels.torch_ops.tile import CHUNK, Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim
from mergecore_kernels.triton_ops.launch_table import launch_options, to_device

WIDTH = 512
"""Lanes of a program."""
WIDTH_LEVELS = WIDTH.bit_length() - 1
GROUPS = LANES // WIDTH
ROW = tl.constexpr(LANES)
"""Elements from one row of a chunk to the next."""
_LEVELS = LANES.bit_length() - 1
_GROUP_LEVELS = GROUPS.bit_length() - 1


@triton.jit
def add_pairs(
    values,  # [N]
    STEPS: tl.constexpr,
):
    """[N / 2^STEPS]: STEPS levels of the tree. A sum of two has one order only, whatever the layout of the values."""
    for _ in tl.static_range(STEPS):
        values = tl.sum(tl.reshape(values, (values.shape[0] // 2, 2)), 1)
    return values


@triton.jit
def adjacent_pair_tree(
    values,  # [2^STEPS]
    STEPS: tl.constexpr,
):
    """A scalar: neighbours are added until one is left."""
    return tl.sum(add_pairs(values, STEPS - 1), 0)


@triton.jit
def _finish_kernel(
    partials_ptr,  # float64: sums of the lanes of a group of a chunk
    places_ptr,  # int64 [chunks]: where a chunk's partials begin
    sums_ptr,  # int64 [S, 3]: first of its chunks, their number, where in a chunk's partials this sum has its own
    totals_ptr,  # float64 [S]
    LANES: tl.constexpr,
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_LEVELS: tl.constexpr,
):
    sum_ptr = sums_ptr + 3 * tl.program_id(0).to(tl.int64)
    places_ptr += tl.load(sum_ptr)
    chunks = tl.load(sum_ptr + 1)
    partials_ptr += tl.load(sum_ptr + 2)
    member = tl.arange(0, LANES * GROUPS)
    lane = member // GROUPS
    total = tl.zeros((LANES,), tl.float64)
    for done in range(0, chunks, LANES):
        there = lane < chunks - done
        place = tl.load(places_ptr + done + lane, mask=there, other=0)
        partial = tl.load(partials_ptr + place + member % GROUPS, mask=there, other=0.0)
        total += add_pairs(partial, GROUP_LEVELS)
    tl.store(totals_ptr + tl.program_id(0), adjacent_pair_tree(total, LEVELS))


@dataclass(slots=True)
class TreeSums:
    """Sums over the tiles of some jobs: kernels write partials, chunk by chunk; `totals` adds them on the device."""

    workspace: Workspace
    _buffers: list[Tensor] = field(default_factory=list)
    _length: int = 0
    _places: dict[Hashable, list[int]] = field(default_factory=dict)  # by job, in the order of its chunks

    def partials(self, jobs: Sequence[Hashable], tiles: Sequence[Tile], count: int) -> Tensor:
        """float64 [programs, count, GROUPS], for a launch on these tiles with blocks of CHUNK elements.

        `jobs` names the job of each tile. A job's tiles come in order.
        """
        size = count * GROUPS
        at = self._length
        for job, tile in zip(jobs, tiles, strict=True):
            chunks = -(-len(tile) // CHUNK)
            self._places.setdefault(job, []).extend(range(at, at + chunks * size, size))
            at += chunks * size
        buffer = torch.empty(at - self._length, dtype=torch.float64, device=self.workspace.device)
        self._length = at
        self._buffers.append(buffer)
        return buffer

    def totals(self, counts: Mapping[Any, int]) -> Tensor:
        """float64 [Σ counts]: the sums of each job, of which it has so many, one job after another."""
        places: list[int] = []
        sums: list[tuple[int, int, int]] = []
        for job, count in counts.items():
            own = self._places.get(job, [])
            sums += [(len(places), len(own), index * GROUPS) for index in range(count)]
            places += own
        if not places:
            return torch.zeros(len(sums), dtype=torch.float64, device=self.workspace.device)
        return finished(torch.cat(self._buffers), np.array(places, dtype=np.int64), np.array(sums, dtype=np.int64))


def finished(partials: Tensor, places: NDArray[np.int64], sums: NDArray[np.int64]) -> Tensor:
    """float64 [S] from partials, places [chunks] and sums [S, 3] as `_finish_kernel` takes them. No wait."""
    totals = torch.empty(len(sums), dtype=torch.float64, device=partials.device)
    if not len(sums):
        return totals
    _finish_kernel[(len(sums),)](
        partials,
        to_device(places, partials.device),
        to_device(sums, partials.device),
        totals,
        LANES=LANES,
        LEVELS=_LEVELS,
        GROUPS=GROUPS,
        GROUP_LEVELS=_GROUP_LEVELS,
        **launch_options(LANES * GROUPS, per_thread=16),
    )
    return totals


CLAIMS = {"_finish_kernel": Claim(registers={2: 144}, bytes_per_element=None)}
