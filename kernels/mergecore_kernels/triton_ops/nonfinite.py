"""Count the NaN and Inf of tensors, each read once. Counts are integers, so their order doesn't matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels import torch_ops
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import BLOCK, Layout, grouped, launch
from mergecore_kernels.triton_ops.loading import INPUT_SLOT, TAIL, load, locate, whole_part


@triton.jit
def _count_kernel(
    rows_ptr,  # int64 [jobs, 4 + 1]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    counts_ptr,  # int64 [tensors], zero at first
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, _, at, left = locate(rows_ptr, blocks_ptr, 1, BLOCK)
    # The number of the tensor stands where other operations have the index of the first element.
    counts_ptr += tl.load(row_ptr + 1)
    if ALIGNED:
        whole = whole_part(left)
        _count(row_ptr, counts_ptr, at, whole, INPUTS, True, BLOCK)
        if whole < left:
            _count(row_ptr, counts_ptr, at + whole, left - whole, INPUTS, False, TAIL)
    else:
        _count(row_ptr, counts_ptr, at, left, INPUTS, False, BLOCK)


@triton.jit
def _count(row_ptr, counts_ptr, at, left, INPUTS: tl.constexpr, ALIGNED: tl.constexpr, LANES: tl.constexpr):
    values = load(row_ptr + INPUT_SLOT, at, tl.arange(0, LANES), left, INPUTS[0], ALIGNED)
    nonfinite = tl.where(tl.abs(values) < float("inf"), 0, 1)
    count = tl.sum(nonfinite, 0)
    if count > 0:
        tl.atomic_add(counts_ptr, count.to(tl.int64))


def count_nonfinite(x: Tensor) -> int:
    """How many elements of x (contiguous) are NaN or infinite."""
    return count_nonfinite_batch([x])[0]


def count_nonfinite_batch(tensors: Sequence[Tensor]) -> list[int]:
    """The same for each of them, all on one device: one launch per dtype and alignment, one wait."""
    counts: list[int] = nonfinite_counts(tensors).tolist()
    return counts


def nonfinite_counts(tensors: Sequence[Tensor]) -> Tensor:
    """The same as int64 [tensors] on their device: the host needn't wait for it."""
    if not tensors:
        return torch.empty(0, dtype=torch.int64)
    counts = torch.zeros(len(tensors), dtype=torch.int64, device=tensors[0].device)
    tiles = [Tile(i, [x], None, torch.float32) for i, x in enumerate(tensors) if x.dtype != torch.float64]
    for layout, group in grouped((Layout.of(tile), tile) for tile in tiles).items():
        launch(_count_kernel, layout, group, None, counts.device, counts)
    for i, x in enumerate(tensors):
        if x.dtype == torch.float64:
            counts[i : i + 1] = torch_ops.nonfinite_counts([x])
    return counts


def bytes_moved(x: Tensor) -> int:
    """The tensor once."""
    return x.numel() * x.element_size()


CLAIMS = {"_count_kernel": Claim(registers={2: 28}, bytes_per_element=bytes_once)}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Of one tensor, so for one m."""
    x = torch.zeros(3 * BLOCK + 5, dtype=dtype)
    return {"a tensor": lambda workspace: count_nonfinite(x)} if m == 2 else {}
