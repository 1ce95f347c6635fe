"""Move to the other model where it is near the base: both read once, the output written once, 10 instructions and a
division per element. Step by step in torch it would be some ten passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mergecore_kernels.operations import NearSwap
from mergecore_kernels.torch_ops.arithmetic import rounded
from mergecore_kernels.torch_ops.nearswap import LEAST_DISTANCE
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
)
from mergecore_kernels.triton_ops.loading import BASE_SLOT, INPUT_SLOT, OUT_SLOT, TAIL, load, locate, store, whole_part

_LEAST = tl.constexpr(rounded(LEAST_DISTANCE, torch.float32))


@triton.jit
def _nearswap_kernel(
    rows_ptr,  # int64 [jobs, 4 + 1]: see launch_table.py
    blocks_ptr,  # int64 [programs, 2]
    ts_ptr,  # float32 [jobs]
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, job, at, left = locate(rows_ptr, blocks_ptr, 1, BLOCK)
    t = tl.load(ts_ptr + job)
    if ALIGNED:
        whole = whole_part(left)
        _body(row_ptr, t, at, whole, INPUTS, BASE, OUT, True, BLOCK)
        if whole < left:
            _body(row_ptr, t, at + whole, left - whole, INPUTS, BASE, OUT, False, TAIL)
    else:
        _body(row_ptr, t, at, left, INPUTS, BASE, OUT, False, BLOCK)


@triton.jit
def _body(
    row_ptr,
    t,
    at,
    left,
    INPUTS: tl.constexpr,
    BASE: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    base = load(row_ptr + BASE_SLOT, at, lane, left, BASE, ALIGNED)
    x = load(row_ptr + INPUT_SLOT, at, lane, left, INPUTS[0], ALIGNED)
    distance = tl.maximum(tl.abs(base - x), _LEAST)
    share = tl.minimum(tl.div_rn(tl.zeros_like(distance) + t, distance), 1.0)
    store(share * x + (1.0 - share) * base, row_ptr + OUT_SLOT, at, lane, left, OUT, ALIGNED)


def nearswap(tile: Tile, spec: NearSwap, out: Tensor, workspace: Workspace) -> None:
    """[n] α·x + (1 - α)·base with α = t / max(|base - x|, 1e-6), cut to [0, 1]; each step is rounded."""
    nearswap_batch([(spec, tile, out)], workspace)


def nearswap_batch(jobs: Sequence[tuple[NearSwap, Tile, Tensor]], workspace: Workspace) -> None:
    """One launch per layout."""
    for layout, group in grouped((Layout.of(tile, out), (spec, tile, out)) for spec, tile, out in jobs).items():
        assert layout.base is not None, "nearswap needs a base"
        ts = floats_on_device([max(0.0, spec.t) for spec, _, _ in group], workspace.device)
        tiles, outs = [tile for _, tile, _ in group], [out for _, _, out in group]
        launch(_nearswap_kernel, layout, tiles, outs, workspace.device, ts)


def bytes_moved(tile: Tile, out: Tensor) -> int:
    """The input, the base and the output once, which is the least possible."""
    return tensor_bytes(tile, out)


CLAIMS = {"_nearswap_kernel": Claim(registers={2: 64}, bytes_per_element=bytes_once, divides=lambda constants: True)}


def examples(m: int, dtype: torch.dtype) -> Examples:
    """It has one input, so it is shown for one m."""
    n = 3 * BLOCK + 5
    x, out = torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
    tile, mixed = Tile(0, [x], out, torch.float32), Tile(0, [x.to(torch.float32)], out, torch.float32)
    if m != 2:
        return {}
    return {
        "one dtype": lambda workspace: nearswap(tile, NearSwap(0.1), out, workspace),
        "mixed dtypes": lambda workspace: nearswap(mixed, NearSwap(0.1), out, workspace),
    }
