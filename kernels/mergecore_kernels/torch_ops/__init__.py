"""The operations in torch: their definition, and how they run on a CPU.

`measure` and `combine` find the function by the type of what is asked for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mergecore_kernels.operations import (
    Combine,
    Consensus,
    Copy,
    Gram,
    KthMagnitudes,
    MagnitudeSums,
    Measure,
    WeightedSum,
)  # fmt: skip
from mergecore_kernels.torch_ops.consensus import consensus
from mergecore_kernels.torch_ops.gram import gram
from mergecore_kernels.torch_ops.magnitude_sums import magnitude_sums
from mergecore_kernels.torch_ops.nonfinite import count_nonfinite
from mergecore_kernels.torch_ops.order_statistics import kth_magnitudes
from mergecore_kernels.torch_ops.tile import CHUNK, Tile, Tiles
from mergecore_kernels.torch_ops.weighted_sum import copy, weighted_sum
from mergecore_kernels.torch_ops.workspace import Workspace

__all__ = ["CHUNK", "Tile", "Tiles", "Workspace", "combine", "count_nonfinite", "measure"]

_MEASURES: dict[type, Any] = {Gram: gram, KthMagnitudes: kth_magnitudes, MagnitudeSums: magnitude_sums}
_COMBINES: dict[type, Any] = {Copy: copy, WeightedSum: weighted_sum, Consensus: consensus}


def measure(spec: Measure, tiles: Tiles, workspace: Workspace) -> Any:
    """What `spec` asks for, from one or more passes over the tiles."""
    return _MEASURES[type(spec)](tiles, spec, workspace)


def combine(spec: Combine, tile: Tile, out: Tensor, workspace: Workspace) -> None:
    """Write the output tile: `out` [n], of the output dtype, is written completely."""
    _COMBINES[type(spec)](tile, spec, out, workspace)
