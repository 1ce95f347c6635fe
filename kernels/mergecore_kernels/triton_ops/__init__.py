"""The operations as Triton kernels: same names, signatures and bits as `torch_ops`, which defines them.

Importing this package needs triton, so it is imported only where it is used. Tensors are on the current CUDA or ROCm
device (or on the CPU under TRITON_INTERPRET=1).

Each operation but `add_low_rank` has a batch form; a single call is a batch of one. Jobs of a batch that have the same
layout (number and dtypes of inputs, base and output; alignment) share a launch. `combine_batch` doesn't make the host
wait; `measure_batch` makes it wait once, if all tiles are in lists; twice where magnitudes are counted.

Kernels compute in float32. Jobs with a float64 tensor among their inputs go to the torch twin, on the same device: such
models are rare, and each kernel would need a second form. So does `Perturb`, which no merge method uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergecore_kernels import torch_ops
from mergecore_kernels.operations import (
    Combine,
    Consensus,
    Copy,
    Energies,
    Gram,
    GramColumns,
    GramRows,
    ImportanceQuantiles,
    KthMagnitudes,
    LargestVariances,
    MagnitudeCounts,
    MagnitudeSums,
    Measure,
    NearSwap,
    OverlapCounts,
    OverlapMean,
    Perturb,
    SelectiveConsensus,
    TakeImportant,
    TileFunction,
    WeightedColumns,
    WeightedRows,
    WeightedSum,
)  # fmt: skip
from mergecore_kernels.torch_ops import CHUNK, Tile, Tiles, Workspace
from mergecore_kernels.triton_ops.batches import Peeked, awaited
from mergecore_kernels.triton_ops.consensus import consensus_batch
from mergecore_kernels.triton_ops.energies import energies_batch
from mergecore_kernels.triton_ops.gram import gram_batch
from mergecore_kernels.triton_ops.gram_columns import gram_columns_batch
from mergecore_kernels.triton_ops.gram_rows import gram_rows_batch
from mergecore_kernels.triton_ops.importance import importance_quantiles_batch, take_important_batch
from mergecore_kernels.triton_ops.low_rank import add_low_rank
from mergecore_kernels.triton_ops.magnitude_counts import magnitude_counts_batch
from mergecore_kernels.triton_ops.magnitude_sums import magnitude_sums_batch
from mergecore_kernels.triton_ops.nearswap import nearswap_batch
from mergecore_kernels.triton_ops.nonfinite import count_nonfinite, count_nonfinite_batch, nonfinite_counts
from mergecore_kernels.triton_ops.order_statistics import kth_magnitudes_batch
from mergecore_kernels.triton_ops.overlaps import overlap_counts_batch, overlap_mean_batch
from mergecore_kernels.triton_ops.selective_consensus import selective_consensus_batch
from mergecore_kernels.triton_ops.variances import largest_variances_batch
from mergecore_kernels.triton_ops.weighted_sum import (
    copy_batch,
    weighted_columns_batch,
    weighted_rows_batch,
    weighted_sum_batch,
)

__all__ = [
    "CHUNK",
    "Tile",
    "Tiles",
    "Workspace",
    "add_low_rank",
    "combine",
    "combine_batch",
    "count_nonfinite",
    "count_nonfinite_batch",
    "measure",
    "measure_batch",
    "nonfinite_counts",
]

_MEASURES: dict[type, Any] = {
    Gram: gram_batch,
    GramRows: gram_rows_batch,
    GramColumns: gram_columns_batch,
    KthMagnitudes: kth_magnitudes_batch,
    MagnitudeCounts: magnitude_counts_batch,
    MagnitudeSums: magnitude_sums_batch,
    LargestVariances: largest_variances_batch,
    Energies: energies_batch,
    OverlapCounts: overlap_counts_batch,
    ImportanceQuantiles: importance_quantiles_batch,
}
_COMBINES: dict[type, Any] = {
    Copy: copy_batch,
    WeightedSum: weighted_sum_batch,
    WeightedRows: weighted_rows_batch,
    WeightedColumns: weighted_columns_batch,
    Consensus: consensus_batch,
    SelectiveConsensus: selective_consensus_batch,
    OverlapMean: overlap_mean_batch,
    NearSwap: nearswap_batch,
    TakeImportant: take_important_batch,
}


def measure(spec: Measure, tiles: Tiles, workspace: Workspace) -> Any:
    """What `spec` asks for, from one or more passes over the tiles."""
    return measure_batch([(spec, tiles)], workspace)[0]


def measure_batch(jobs: Sequence[tuple[Measure, Tiles]], workspace: Workspace) -> list[Any]:
    """The result of each job. The tiles of different jobs are in use at the same time."""
    results: list[Any] = [None] * len(jobs)
    by_type: dict[type, list[tuple[int, tuple[Any, Tiles]]]] = {}
    for job, (spec, tiles) in enumerate(jobs):
        # A list stays one: operations of several passes then know that its tensors stay where they are.
        kept = tiles if isinstance(tiles, list) else Peeked(tiles)
        first = next(iter(kept), None) if isinstance(kept, list) else kept.first
        if first is not None and first.compute == torch.float64:
            results[job] = torch_ops.measure(spec, kept, workspace)
        else:
            by_type.setdefault(type(spec), []).append((job, (spec, kept)))
    pending = [_MEASURES[kind]([job for _, job in group], workspace) for kind, group in by_type.items()]
    for group, values in zip(by_type.values(), awaited(pending), strict=True):
        for (job, _), value in zip(group, values, strict=True):
            results[job] = value
    return results


def combine(spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None:
    """Write the output tile: `out` [n], of the output dtype, is written completely."""
    combine_batch([(spec, tile, out)], workspace)


def combine_batch(jobs: Sequence[tuple[Combine, Tile, Tensor]], workspace: Workspace) -> None:
    """Write the output tiles of all jobs, in as few launches as their kinds need."""
    by_type: dict[type, list[tuple[Any, Tile, Tensor]]] = {}
    for spec, tile, out in jobs:
        if isinstance(spec, TileFunction | Perturb) or tile.compute == torch.float64:
            torch_ops.combine(spec, tile, out, workspace)
        else:
            by_type.setdefault(type(spec), []).append((spec, tile, out))
    for kind, group in by_type.items():
        _COMBINES[kind](group, workspace)
