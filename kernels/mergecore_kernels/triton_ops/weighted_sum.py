"""Weighted sums of the inputs or of their deltas, and plain copies: inputs read once, the output written once.

The weights are one number per input and job, or one per row or column of the tensor. The arithmetic of `torch_ops`:
each product and each sum rounded to float32, in the order of the inputs; one rounding at the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from mergecore_kernels.operations import Copy, WeightedColumns, WeightedRows, WeightedSum
from mergecore_kernels.torch_ops.float8 import FLOAT8
from mergecore_kernels.torch_ops.tile import Tile
from mergecore_kernels.torch_ops.workspace import Workspace
from mergecore_kernels.triton_ops.claims import Claim, Examples, bytes_once
from mergecore_kernels.triton_ops.launch_table import (
    BLOCK,
    Layout,
    floats_on_device,
    grouped,
    launch,
    tensor_bytes,
    to_device,
)
from mergecore_kernels.triton_ops.loading import (
    BASE_SLOT,
    INPUT_SLOT,
    OUT_SLOT,
    START,
    TAIL,
    load,
    locate,
    store,
    whole_part,
)


@triton.jit
def _weighted_sum_kernel(
    rows_ptr,  # int64 [jobs, 4 + M]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    weights_ptr,  # float32 [jobs, M]; of rows or columns int64 [jobs, 4]: see `_vector_weights`; of a copy nothing
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHTS: tl.constexpr,  # "of tensors", "of rows", "of columns" or "none"
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, len(INPUTS), BLOCK)
    OF_VECTORS: tl.constexpr = WEIGHTS == "of rows" or WEIGHTS == "of columns"
    weights_ptr += job * (4 if OF_VECTORS else len(INPUTS))
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, weights_ptr, at, whole, INPUTS, BASE, OUT, True, WEIGHTS, BLOCK)
        if whole < left:
            _body(row_ptr, weights_ptr, at + whole, left - whole, INPUTS, BASE, OUT, False, WEIGHTS, TAIL)
    else:
        _body(row_ptr, weights_ptr, at, left, INPUTS, BASE, OUT, False, WEIGHTS, BLOCK)


@triton.jit
def _body(
    row_ptr,
    weights_ptr,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    OF_VECTORS: tl.constexpr = WEIGHTS == "of rows" or WEIGHTS == "of columns"
    if OF_VECTORS:
        weight_ptr, length = _vector_weights(row_ptr, weights_ptr, at, lane, WEIGHTS)
    if BASE is not None:
        base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    for m in tl.static_range(len(INPUTS)):
        term = load(row_ptr + INPUT_SLOT + m, at, lane, left, INPUTS[m], ALIGNED)
        if BASE is not None:
            term -= base
        if OF_VECTORS:
            term *= tl.load(weight_ptr + m * length, mask=lane < left, other=0.0)
        elif WEIGHTS == "of tensors":
            term *= tl.load(weights_ptr + m)
        if m == 0:
            total = term
        else:
            total += term
    if BASE is not None:
        total += base
    store(total, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)


@triton.jit
def _vector_weights(
    row_ptr,
    weights_ptr,  # int64 [4]: address of float32 [M, length], C, length, the row or column that they begin with
    at,
    lane,
    WEIGHTS: tl.constexpr,
):
    """[LANES] pointers to the weights of the first input, and the distance to those of the next."""
    columns = tl.load(weights_ptr + 1)
    first = tl.load(row_ptr + START) + at
    first_row = first // columns
    # Within the block 32 bits are enough, and a division of 64 bits is slow.
    column = (first - first_row * columns).to(tl.uint32) + lane.to(tl.uint32)
    row = column // columns.to(tl.uint32)
    pointer = tl.load(weights_ptr).to(tl.pointer_type(tl.float32)) - tl.load(weights_ptr + 3)
    if WEIGHTS == "of rows":
        pointer = pointer + first_row + row
    else:
        pointer = pointer + (column - row * columns.to(tl.uint32))
    return pointer, tl.load(weights_ptr + 2)


def copy(tile: Tile, spec: Copy, out: Tensor, workspace: Workspace) -> None:
    """[n] the only input, cast to the dtype of `out`."""
    copy_batch([(spec, tile, out)], workspace)


def copy_batch(jobs: Sequence[tuple[Copy, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout. A base has no part in it."""
    alone = [(None, Tile(tile.start, tile.inputs, None, tile.compute), out) for _, tile, out in jobs]
    for layout, group in _by_layout(alone).items():
        _launch(layout, group, torch.empty(0, device=workspace.device), "none", workspace)


def weighted_sum(tile: Tile, spec: WeightedSum, out: Tensor, workspace: Workspace) -> None:
    """[n] w1·x1 + w2·x2 + ..., or base + (w1·(x1 - base) + w2·(x2 - base) + ...)."""
    weighted_sum_batch([(spec, tile, out)], workspace)


def weighted_sum_batch(jobs: Sequence[tuple[WeightedSum, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout(jobs).items():
        weights = floats_on_device([spec.weights for spec, _, _ in group], workspace.device)
        _launch(layout, group, weights, "of tensors", workspace)


def weighted_rows(tile: Tile, spec: WeightedRows, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights of rows: the tensor is [R, C], and element i has those of row i // C."""
    weighted_rows_batch([(spec, tile, out)], workspace)


def weighted_rows_batch(jobs: Sequence[tuple[WeightedRows, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout(jobs).items():
        begun = [tile.start // spec.columns for spec, tile, _ in group]
        weights = [
            [of_all[first : -(-(tile.start + len(tile)) // spec.columns)] for of_all in spec.weights]
            for (spec, tile, _), first in zip(group, begun, strict=True)
        ]
        _launch_vectors(layout, group, weights, begun, "of rows", workspace)


def weighted_columns(tile: Tile, spec: WeightedColumns, out: Tensor, workspace: Workspace) -> None:
    """[n] the same with weights of columns: the tensor is [R, C], and element i has those of column i mod C."""
    weighted_columns_batch([(spec, tile, out)], workspace)


def weighted_columns_batch(jobs: Sequence[tuple[WeightedColumns, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in _by_layout(jobs).items():
        weights = [spec.weights for spec, _, _ in group]
        _launch_vectors(layout, group, weights, [0] * len(group), "of columns", workspace)


def _launch_vectors(
    layout: Layout,
    jobs: list[tuple[Any, Tile, Tensor]],
    weights: Sequence[Sequence[NDArray[np.float64]]],  # of each job M arrays, from row or column `begun` on
    begun: Sequence[int],
    kind: str,
    workspace: Workspace,
) -> None:
    values = torch.from_numpy(np.concatenate([one for of_job in weights for one in of_job])).to(torch.float32)
    on_device = to_device(values.numpy(), workspace.device)
    lengths = np.array([len(of_job[0]) for of_job in weights])
    places = (np.cumsum(lengths) - lengths) * len(layout.inputs) * values.itemsize
    columns = [spec.columns for spec, _, _ in jobs]
    table = np.stack([on_device.data_ptr() + places, np.array(columns), lengths, np.array(begun)], axis=1)
    _launch(layout, jobs, to_device(table, workspace.device), kind, workspace)


def _by_layout(jobs: Sequence[tuple[Any, Tile, Tensor]]) -> dict[Layout, list[tuple[Any, Tile, Tensor]]]:
    return grouped((Layout.of(tile, out), (spec, tile, out)) for spec, tile, out in jobs)


def _launch(
    layout: Layout, jobs: list[tuple[Any, Tile, Tensor]], weights: Tensor, kind: str, workspace: Workspace
) -> None:
    tiles, outs = [tile for _, tile, _ in jobs], [out for _, _, out in jobs]
    launch(_weighted_sum_kernel, layout, tiles, outs, workspace.device, weights, WEIGHTS=kind)


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """Each input, the base and the output once; the tables and weights of rows are small beside them."""
    return tensor_bytes(tile, out)


CLAIMS = {
    "_weighted_sum_kernel": Claim(
        registers={2: 42, 8: 74, 16: 108},
        bytes_per_element=bytes_once,
        divides=lambda constants: constants["WEIGHTS"] in ("of rows", "of columns"),
    )
}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """Every kind of weights; a length that is no multiple of anything."""
    n = 3 * BLOCK + 5
    inputs = [torch.zeros(n, dtype=dtype) for _ in range(m)]
    out, spec = torch.zeros(n, dtype=dtype), WeightedSum((1.0,) * m)
    plain, deltas = Tile(0, inputs, None, torch.float32), Tile(0, inputs, out, torch.float32)
    mixed = Tile(0, [x.to(torch.float32) if i % 2 else x for i, x in enumerate(inputs)], out, torch.float32)
    shown: Examples = {"deltas": lambda workspace: weighted_sum(deltas, spec, out, workspace)}
    if m == 2:
        shown["weights"] = lambda workspace: weighted_sum(plain, spec, out, workspace)
        shown["mixed dtypes"] = lambda workspace: weighted_sum(mixed, spec, out, workspace)
        float8 = Tile(0, [x.to(d) for x, d in zip(inputs, FLOAT8, strict=True)], inputs[0].to(FLOAT8[0]), torch.float32)
        shown["float8"] = lambda workspace: weighted_sum(float8, spec, out, workspace)
        shown["copy"] = lambda workspace: copy(Tile(0, inputs[:1], None, torch.float32), Copy(), out, workspace)
    if m == 4:
        of_rows = WeightedRows((np.ones(n // 1000 + 1),) * m, 1000)
        of_columns = WeightedColumns((np.ones(1000),) * m, 1000)
        shown["weights of rows"] = lambda workspace: weighted_rows(deltas, of_rows, out, workspace)
        shown["weights of columns"] = lambda workspace: weighted_columns(deltas, of_columns, out, workspace)
    return shown
