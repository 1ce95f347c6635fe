"""The operations in torch: their definition, and how they run on a CPU.

`measure` and `combine` find the function by the type of what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

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
from mergecore_kernels.torch_ops.consensus import consensus
from mergecore_kernels.torch_ops.energies import energies
from mergecore_kernels.torch_ops.gram import gram
from mergecore_kernels.torch_ops.gram_columns import gram_columns
from mergecore_kernels.torch_ops.gram_rows import gram_rows
from mergecore_kernels.torch_ops.importance import importance_quantiles, take_important
from mergecore_kernels.torch_ops.low_rank import add_low_rank
from mergecore_kernels.torch_ops.magnitude_counts import magnitude_counts
from mergecore_kernels.torch_ops.magnitude_sums import magnitude_sums
from mergecore_kernels.torch_ops.nearswap import nearswap
from mergecore_kernels.torch_ops.nonfinite import count_nonfinite, count_nonfinite_batch, nonfinite_counts
from mergecore_kernels.torch_ops.order_statistics import kth_magnitudes
from mergecore_kernels.torch_ops.overlaps import overlap_counts, overlap_mean
from mergecore_kernels.torch_ops.perturb import perturb
from mergecore_kernels.torch_ops.selective_consensus import selective_consensus
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.tile_function import tile_function
from mergecore_kernels.torch_ops.variances import largest_variances
from mergecore_kernels.torch_ops.weighted_sum import copy, weighted_columns, weighted_rows, weighted_sum
from mergecore_kernels.torch_ops.workspace import Workspace

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
    Gram: gram,
    GramRows: gram_rows,
    GramColumns: gram_columns,
    KthMagnitudes: kth_magnitudes,
    MagnitudeCounts: magnitude_counts,
    MagnitudeSums: magnitude_sums,
    LargestVariances: largest_variances,
    Energies: energies,
    OverlapCounts: overlap_counts,
    ImportanceQuantiles: importance_quantiles,
}
_COMBINES: dict[type, Any] = {
    Copy: copy,
    WeightedSum: weighted_sum,
    WeightedRows: weighted_rows,
    WeightedColumns: weighted_columns,
    Consensus: consensus,
    SelectiveConsensus: selective_consensus,
    OverlapMean: overlap_mean,
    NearSwap: nearswap,
    TakeImportant: take_important,
    Perturb: perturb,
    TileFunction: tile_function,
}


def measure(spec: Measure, tiles: Tiles, workspace: Workspace) -> Any:
    """What `spec` asks for, from one or more passes over the tiles."""
    return _MEASURES[type(spec)](tiles, spec, workspace)


def combine(spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None:
    """Write the output tile: `out` [n], of the output dtype, is written completely."""
    _COMBINES[type(spec)](tile, spec, out, workspace)


def measure_batch(jobs: Sequence[tuple[Measure, Tiles]], workspace: Workspace) -> list[Any]:
    """What each job asks for, one after another. On a GPU, with kernels, they share launches."""
    return [measure(spec, tiles, workspace) for spec, tiles in jobs]


def combine_batch(jobs: Sequence[tuple[Combine, Tile, Tensor]], workspace: Workspace) -> None:
    """Write the output tile of each job."""
    for spec, tile, out in jobs:
        combine(spec, tile, out, workspace)
